//! Queues and shutdown under a model checker, which runs each scenario under many interleavings of its threads
//! and finds deadlocks as well as failed assertions: `cargo test --features shuttle --test shuttle`.

use std::collections::HashMap;
use std::time::Duration;

use inflight::engine::{Event, EventKind, FinishReason, Queue, RequestId};
use inflight::{Engine, EngineOptions, Prompt, Request, Status};
use shuttle::thread;

/// Interleavings of each scenario.
const NUM_SCHEDULES: usize = 5_000;

fn engine(max_unread_tokens: usize) -> Engine {
    let mut options = EngineOptions::new("");
    options.device = "echo".to_owned();
    options.max_num_sequences = 2;
    options.max_batched_tokens = 4;
    options.max_unread_tokens = max_unread_tokens;
    Engine::create(&options).unwrap()
}

fn request(tokens: &[u32]) -> Request {
    Request::new(Prompt::Tokens(tokens.to_vec()))
}

/// Takes everything until the queue closes; counts terminal events and checks that nothing follows them.
fn drain(queue: &Queue, seen: &mut HashMap<RequestId, FinishReason>) {
    while let Ok(events) = queue.poll(None) {
        take(events, seen);
    }
}

fn take(events: Vec<Event>, seen: &mut HashMap<RequestId, FinishReason>) {
    for event in events {
        assert!(!seen.contains_key(&event.request_id), "an event follows the end");
        if let EventKind::Finished(finished) = event.kind {
            seen.insert(event.request_id, finished.reason);
        }
    }
}

#[test]
fn every_accepted_request_ends_once_while_the_engine_closes() {
    shuttle::check_random(
        || {
            let engine = engine(100);
            let hosts: Vec<_> = (0..2)
                .map(|host| {
                    let engine = engine.clone();
                    thread::spawn(move || {
                        (0..2).filter_map(|_| engine.enqueue(request(&[host, 1])).ok()).collect::<Vec<_>>()
                    })
                })
                .collect();
            let closer = {
                let engine = engine.clone();
                thread::spawn(move || engine.close())
            };
            let mut seen = HashMap::new();
            drain(engine.queue(), &mut seen);
            closer.join().unwrap();
            let mut accepted: Vec<RequestId> =
                hosts.into_iter().flat_map(|host| host.join().unwrap()).collect();
            let mut ended: Vec<RequestId> = seen.into_keys().collect();
            accepted.sort_unstable();
            ended.sort_unstable();
            assert_eq!(accepted, ended);
        },
        NUM_SCHEDULES,
    );
}

#[test]
fn a_request_that_was_paused_always_goes_on() {
    shuttle::check_random(
        || {
            let engine = engine(1);
            let id = engine.enqueue(request(&[1, 2, 3])).unwrap();
            let mut seen = HashMap::new();
            while seen.is_empty() {
                take(engine.poll(None).unwrap(), &mut seen);
            }
            assert_eq!(seen.remove(&id), Some(FinishReason::Stop));
        },
        NUM_SCHEDULES,
    );
}

#[test]
fn cancel_meets_the_end_in_any_order() {
    shuttle::check_random(
        || {
            let engine = engine(100);
            let id = engine.enqueue(request(&[1, 2])).unwrap();
            let canceller = {
                let engine = engine.clone();
                thread::spawn(move || engine.cancel(id).unwrap())
            };
            let mut seen = HashMap::new();
            while seen.is_empty() {
                take(engine.poll(None).unwrap(), &mut seen);
            }
            canceller.join().unwrap();
            assert!(matches!(seen[&id], FinishReason::Stop | FinishReason::Cancelled));
            assert!(engine.poll(Some(Duration::ZERO)).unwrap().is_empty());
        },
        NUM_SCHEDULES,
    );
}

#[test]
fn an_abandoned_queue_leaves_nothing_behind() {
    shuttle::check_random(
        || {
            let engine = engine(1);
            let queue = engine.create_queue().unwrap();
            let accepted = Request { queue: Some(queue.clone()), ..request(&[1, 2, 3]) };
            engine.enqueue(accepted).unwrap();
            let host = thread::spawn(move || queue.abandon());
            let id = engine.enqueue(request(&[4])).unwrap();
            let mut seen = HashMap::new();
            while seen.is_empty() {
                take(engine.poll(None).unwrap(), &mut seen);
            }
            assert_eq!(seen[&id], FinishReason::Stop);
            host.join().unwrap();
        },
        NUM_SCHEDULES,
    );
}

#[test]
fn a_queue_belongs_to_its_engine_while_that_closes() {
    shuttle::check_random(
        || {
            let engine = engine(100);
            let queue = engine.create_queue().unwrap();
            let closer = {
                let engine = engine.clone();
                thread::spawn(move || engine.close())
            };
            if let Err(error) = engine.enqueue(Request { queue: Some(queue), ..request(&[1]) }) {
                assert_eq!(error.status(), Status::Closed, "{error}");
            }
            closer.join().unwrap();
        },
        NUM_SCHEDULES,
    );
}

#[test]
fn a_request_that_nobody_reads_any_more_stays_paused() {
    const NUM_TOKENS: usize = 20;
    shuttle::check_random(
        || {
            let engine = engine(1);
            engine.enqueue(request(&[7; NUM_TOKENS])).unwrap();
            engine.poll(None).unwrap();
            for _ in 0..300 {
                thread::yield_now();
            }
            engine.close();
            let mut num_unread = 0;
            while let Ok(events) = engine.poll(None) {
                for event in events {
                    if let EventKind::Output(output) = event.kind {
                        num_unread += output.token_ids.len();
                    }
                }
            }
            // One may wait, and each of two steps may be under way when the request is paused or resumed.
            assert!(num_unread <= 6, "{num_unread} tokens were made for nobody");
        },
        NUM_SCHEDULES,
    );
}

#[test]
fn pollers_wake_up_when_the_last_handle_goes() {
    shuttle::check_random(
        || {
            let engine = engine(100);
            let queue = engine.create_queue().unwrap();
            let pollers: Vec<_> = (0..2)
                .map(|_| {
                    let queue = queue.clone();
                    thread::spawn(move || queue.poll(None).unwrap_err().status())
                })
                .collect();
            drop(engine);
            for poller in pollers {
                assert_eq!(poller.join().unwrap(), Status::Closed);
            }
        },
        NUM_SCHEDULES,
    );
}
