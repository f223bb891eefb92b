//! What the GPU takes during a run: energy and clocks, from the driver's management library (NVML).

use std::ffi::OsStr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nvml_wrapper::enum_wrappers::device::Clock;
use nvml_wrapper::{Device, Nvml};

const LIBRARY: &str = "libnvidia-ml.so.1";
/// How often clocks are read: seldom enough to cost nothing.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);

/// What the GPU took. The driver counts energy some ten times a second, so that runs of less than a second are
/// told roughly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// Energy in joules.
    pub energy_joules: f64,
    /// Time in seconds, over which the average power follows.
    pub seconds: f64,
    /// Average clocks in MHz: multiprocessors, memory.
    pub clocks_mhz: [f64; 2],
}

/// A GPU that can be watched.
pub struct Meter {
    nvml: Nvml,
    index: u32,
}

impl Meter {
    /// The GPU that CUDA calls `ordinal` and `name`, or why it cannot be watched.
    pub fn open(ordinal: u32, name: &str) -> Result<Self, String> {
        let nvml = Nvml::builder().lib_path(OsStr::new(LIBRARY)).init();
        let nvml = nvml.map_err(|error| format!("{LIBRARY}: {error}"))?;
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        let visible = visible.as_deref().filter(|list| !list.is_empty());
        let entry = visible.map(|list| list.split(',').nth(ordinal as usize).unwrap_or_default().trim());
        let found = match entry {
            None => nvml.device_by_index(ordinal),
            Some(entry) => match entry.parse() {
                Ok(index) => nvml.device_by_index(index),
                Err(_) => nvml.device_by_uuid(entry),
            },
        };
        let device = found.map_err(|error| format!("no GPU for cuda:{ordinal}: {error}"))?;
        let found_name = device.name().map_err(|error| error.to_string())?;
        if found_name != name {
            return Err(format!("cuda:{ordinal} is {name:?}, but the driver lists {found_name:?} there"));
        }
        device.total_energy_consumption().map_err(|error| format!("energy of {name}: {error}"))?;
        let index = device.index().map_err(|error| error.to_string())?;
        Ok(Self { nvml, index })
    }

    /// Runs `work` and tells what the GPU took meanwhile; `None` where the driver stopped answering.
    pub fn measure<T>(&self, work: impl FnOnce() -> T) -> (T, Option<Usage>) {
        let Ok(device) = self.nvml.device_by_index(self.index) else { return (work(), None) };
        let (stop, stopped) = channel();
        let (start, before) = (Instant::now(), device.total_energy_consumption());
        let (result, clocks_mhz) = thread::scope(|scope| {
            let watched = &device;
            let sampler = scope.spawn(move || sample_clocks(watched, &stopped));
            let result = work();
            drop(stop);
            (result, sampler.join().ok().flatten())
        });
        let (seconds, after) = (start.elapsed().as_secs_f64(), device.total_energy_consumption());
        let usage = clocks_mhz.zip(before.ok().zip(after.ok())).map(|(clocks_mhz, (before, after))| {
            // The driver counts millijoules.
            Usage { energy_joules: after.saturating_sub(before) as f64 / 1e3, seconds, clocks_mhz }
        });
        (result, usage)
    }
}

/// Average clocks until `stopped` disconnects.
fn sample_clocks(device: &Device<'_>, stopped: &Receiver<()>) -> Option<[f64; 2]> {
    let (mut sums, mut count) = ([0.0; 2], 0.0);
    loop {
        for (sum, clock) in sums.iter_mut().zip([Clock::SM, Clock::Memory]) {
            *sum += f64::from(device.clock_info(clock).ok()?);
        }
        count += 1.0;
        if stopped.recv_timeout(SAMPLE_INTERVAL) != Err(RecvTimeoutError::Timeout) {
            return Some(sums.map(|sum| sum / count));
        }
    }
}

/// Ordinal and name of a device such as `cuda:0 (NVIDIA H100 80GB HBM3)`.
pub fn cuda_device(device: &str) -> Option<(u32, &str)> {
    let (ordinal, name) = device.strip_prefix("cuda:")?.split_once(" (")?;
    Some((ordinal.parse().ok()?, name.strip_suffix(')')?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cuda_devices_have_an_ordinal_and_a_name() {
        assert_eq!(cuda_device("cuda:1 (NVIDIA H200 (PCIe))"), Some((1, "NVIDIA H200 (PCIe)")));
        for other in ["cpu", "echo", "cuda:x (A)", "cuda:0"] {
            assert_eq!(cuda_device(other), None, "{other}");
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_is_told_from_one_that_is() {
        let reason = Meter::open(0, "a card of no such name").err().expect("no such card");
        assert!(reason.contains(LIBRARY) || reason.contains("cuda:0"), "{reason}");
    }
}
