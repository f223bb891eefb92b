//! Ctrl-C. The tool owns its process and may install a handler; the library never does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::SIGINT;
use signal_hook::flag;

/// Whether Ctrl-C was pressed. A second one, before the first was answered, ends the process at once.
#[derive(Debug, Clone)]
pub struct Interrupt {
    pressed: Arc<AtomicBool>,
}

impl Interrupt {
    /// Takes over Ctrl-C.
    pub fn install() -> io::Result<Self> {
        let pressed = Arc::new(AtomicBool::new(false));
        // Handlers run in the order of registration: the first Ctrl-C finds the flag down and only raises it.
        flag::register_conditional_shutdown(SIGINT, 130, Arc::clone(&pressed))?;
        flag::register(SIGINT, Arc::clone(&pressed))?;
        Ok(Self { pressed })
    }

    /// Whether Ctrl-C was pressed since the start or the last [`Interrupt::clear`].
    pub fn is_pressed(&self) -> bool {
        self.pressed.load(Ordering::Relaxed)
    }

    /// Forgets a Ctrl-C that has been answered.
    pub fn clear(&self) {
        self.pressed.store(false, Ordering::Relaxed);
    }
}
