//! How long the device has nothing to compute between two steps: events around each, for benchmarks.

use super::Cuda;
use super::driver::{Event, Gpu};
use crate::backend::BackendResult;

/// Where steps start and end on the stream.
#[derive(Default)]
pub(super) struct Gaps {
    is_watching: bool,
    starts: Vec<Event>,
    ends: Vec<Event>,
}

impl Gaps {
    /// The work of a step comes next.
    pub(super) fn start(&mut self, gpu: &Gpu) -> BackendResult<()> {
        mark(self.is_watching, &mut self.starts, gpu)
    }

    /// The work of a step is on the stream.
    pub(super) fn end(&mut self, gpu: &Gpu) -> BackendResult<()> {
        mark(self.is_watching, &mut self.ends, gpu)
    }
}

fn mark(is_watching: bool, events: &mut Vec<Event>, gpu: &Gpu) -> BackendResult<()> {
    if is_watching {
        let event = Event::new(gpu, true)?;
        event.record(gpu)?;
        events.push(event);
    }
    Ok(())
}

impl Cuda {
    /// Watches recorded steps from now on, until [`Cuda::take_gaps`]. Events cost the host and the device about a
    /// microsecond each, so that speeds are measured apart.
    pub fn watch_gaps(&mut self) {
        self.gaps = Gaps { is_watching: true, ..Gaps::default() };
    }

    /// Microseconds on the device from the last kernel of each watched step to the point where the next one's may
    /// start: the way of the results to the host, of the next batch to the device, and every wait for the host. The
    /// driver's own start of a recorded step counts as part of the step. Waits for the device and ends the watch.
    pub fn take_gaps(&mut self) -> BackendResult<Vec<f64>> {
        let Gaps { starts, ends, .. } = std::mem::take(&mut self.gaps);
        self.gpu.bind()?;
        self.gpu.synchronize()?;
        let gaps = ends.iter().zip(starts.iter().skip(1));
        gaps.map(|(end, start)| Ok(f64::from(start.milliseconds_since(&self.gpu, end)?) * 1e3)).collect()
    }
}
