//! Creating the engine, with a progress bar for people and Ctrl-C while it loads.

use std::io::IsTerminal;
use std::ops::{ControlFlow, Deref};
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use inflight::config::Progress;
use inflight::{Engine, EngineOptions, Status};

use crate::failure::Failure;
use crate::interrupt::Interrupt;

/// An engine that is closed when the command is over, however it ends.
pub struct LoadedEngine(Engine);

impl Deref for LoadedEngine {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.0
    }
}

impl Drop for LoadedEngine {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Loads the model. The bar goes to standard error, and only where that is a terminal and `json` is not asked
/// for; it is gone when loading has ended.
pub fn load(mut options: EngineOptions, json: bool, interrupt: &Interrupt) -> Result<LoadedEngine, Failure> {
    let bar = if json || !std::io::stderr().is_terminal() { ProgressBar::hidden() } else { visible_bar() };
    let (shown, pressed) = (bar.clone(), interrupt.clone());
    options.progress = Some(Arc::new(move |progress: Progress| {
        shown.set_length(progress.bytes_total);
        shown.set_position(progress.bytes_done);
        if pressed.is_pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }));
    let created = Engine::create(&options);
    bar.finish_and_clear();
    match created {
        Ok(engine) => Ok(LoadedEngine(engine)),
        Err(error) if error.status() == Status::Aborted && interrupt.is_pressed() => {
            Err(Failure::Interrupted)
        }
        Err(error) => Err(error.into()),
    }
}

fn visible_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("loading {bar:32} {binary_bytes}/{binary_total_bytes} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::no_length().with_style(style)
}
