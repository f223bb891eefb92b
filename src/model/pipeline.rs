//! Two buffers in turns: while one is handed on, the other is filled.

use std::mem;

use crate::error::{Error, Result, Status};

/// Has `fill` fill a buffer of `num_bytes` bytes for every chunk, and hands it on with the chunk, in order. `fill`
/// runs on `pool` for one chunk, `hand_on` on the calling thread for the chunk before it. Buffers hold any bytes
/// before they are filled. The first error ends it.
pub(super) fn run<C: Sync>(
    pool: &rayon::ThreadPool,
    chunks: &[C],
    num_bytes: impl Fn(&C) -> usize,
    fill: impl Fn(&C, &mut [u8]) -> Result<()> + Sync,
    mut hand_on: impl FnMut(&C, &[u8]) -> Result<()>,
) -> Result<()> {
    let (mut filled, mut buffer) = (Vec::new(), Vec::new());
    let mut previous = None;
    for next in chunks.iter().map(Some).chain([None]) {
        if let Some(chunk) = next {
            resize(&mut buffer, num_bytes(chunk))?;
        }
        let mut outcome = Ok(());
        let handed_on = pool.in_place_scope(|scope| {
            if let Some(chunk) = next {
                let (fill, buffer, outcome) = (&fill, &mut buffer, &mut outcome);
                scope.spawn(move |_| *outcome = fill(chunk, buffer));
            }
            previous.map_or(Ok(()), |chunk| hand_on(chunk, &filled))
        });
        handed_on.and(outcome)?;
        mem::swap(&mut filled, &mut buffer);
        previous = next;
    }
    Ok(())
}

/// Makes `buffer` hold `num_bytes` bytes, of any value.
pub(super) fn resize(buffer: &mut Vec<u8>, num_bytes: usize) -> Result<()> {
    buffer.try_reserve(num_bytes.saturating_sub(buffer.len())).map_err(|_| {
        Error::new(
            Status::OutOfMemory,
            format!("{num_bytes} bytes for a chunk of weights could not be allocated"),
        )
    })?;
    buffer.resize(num_bytes, 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn pool(num_threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap()
    }

    #[test]
    fn chunks_come_in_order_and_whole() {
        let sizes: Vec<usize> = (0..40).map(|index| index * 37 % 23).collect();
        for num_threads in [1, 3] {
            let mut seen = Vec::new();
            let fill = |&size: &usize, buffer: &mut [u8]| {
                // Now the filling is slower, now the handing on.
                thread::sleep(Duration::from_micros(size as u64 % 5 * 100));
                buffer.fill(size as u8);
                Ok(())
            };
            let result = run(
                &pool(num_threads),
                &sizes,
                |&size| size,
                fill,
                |&size, bytes| {
                    thread::sleep(Duration::from_micros(200));
                    assert_eq!(bytes, vec![size as u8; size]);
                    seen.push(size);
                    Ok(())
                },
            );
            result.unwrap();
            assert_eq!(seen, sizes);
        }
    }

    #[test]
    fn the_first_error_ends_it() {
        let chunks: Vec<usize> = (0..10).collect();
        let fail = |index: usize, at: usize| match index == at {
            true => Err(Error::internal(format!("chunk {index}"))),
            false => Ok(()),
        };
        for (fill_at, hand_on_at, expected, num_handed_on) in [(4, 99, "chunk 4", 4), (99, 6, "chunk 6", 6)] {
            let mut count = 0;
            let error = run(
                &pool(2),
                &chunks,
                |_| 8,
                |&index, _| fail(index, fill_at),
                |&index, _| {
                    fail(index, hand_on_at)?;
                    count += 1;
                    Ok(())
                },
            );
            assert!(error.unwrap_err().message().contains(expected));
            assert_eq!(count, num_handed_on);
        }
    }

    #[test]
    fn nothing_is_done_for_no_chunks() {
        let nothing: [usize; 0] = [];
        run(&pool(1), &nothing, |_| 0, |_, _| panic!("filled"), |_, _| panic!("handed on")).unwrap();
    }
}
