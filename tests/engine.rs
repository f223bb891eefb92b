//! The engine's promises, on the echo device: every accepted request gets its tokens in order and exactly one
//! terminal event, whatever happens to it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use inflight::config::{LogLevel, Logger};
use inflight::engine::{Event, EventKind, FinishReason, RequestId, Timings};
use inflight::{Engine, EngineOptions, Prompt, Request, Status};

const EOS: u32 = 256;
const PATIENCE: Duration = Duration::from_secs(20);

fn echo_options() -> EngineOptions {
    let mut options = EngineOptions::new("");
    options.device = "echo".to_owned();
    options
}

fn echo() -> Engine {
    Engine::create(&echo_options()).unwrap()
}

fn tokens_request(tokens: impl IntoIterator<Item = u32>) -> Request {
    Request::new(Prompt::Tokens(tokens.into_iter().collect()))
}

/// What a host has seen of one request.
#[derive(Debug, Default, Clone)]
struct Seen {
    tokens: Vec<u32>,
    text: String,
    end: Option<(FinishReason, Option<Status>)>,
    num_prompt_tokens: u32,
    num_output_tokens: u32,
    timings: Timings,
}

/// Sorts events by request and checks that nothing follows a terminal event.
#[derive(Debug, Default)]
struct Collector {
    requests: HashMap<RequestId, Seen>,
}

impl Collector {
    fn take(&mut self, events: Vec<Event>) {
        for event in events {
            let seen = self.requests.entry(event.request_id).or_default();
            assert!(seen.end.is_none(), "request {} got an event after its end", event.request_id);
            match event.kind {
                EventKind::Output(output) => {
                    seen.tokens.extend(output.token_ids);
                    seen.text.push_str(&output.text);
                }
                EventKind::Finished(finished) => {
                    seen.end = Some((finished.reason, finished.error.map(|error| error.status())));
                    seen.num_prompt_tokens = finished.num_prompt_tokens;
                    seen.num_output_tokens = finished.num_output_tokens;
                    seen.timings = finished.timings;
                }
            }
        }
    }

    fn num_ended(&self) -> usize {
        self.requests.values().filter(|seen| seen.end.is_some()).count()
    }

    /// Polls until `num_ended` requests have ended.
    fn wait(&mut self, engine: &Engine, num_ended: usize) {
        let start = Instant::now();
        while self.num_ended() < num_ended {
            assert!(start.elapsed() < PATIENCE, "{} of {num_ended} requests ended", self.num_ended());
            self.take(engine.poll(Some(Duration::from_millis(100))).unwrap());
        }
    }
}

#[test]
fn a_prompt_comes_back_and_ends_with_the_end_of_sequence() {
    let engine = echo();
    let prompt = Prompt::Text { text: "hello".into(), add_special_tokens: false, parse_special: false };
    let id = engine.enqueue(Request { user_data: 7, ..Request::new(prompt) }).unwrap();
    let mut collector = Collector::default();
    collector.wait(&engine, 1);
    let seen = &collector.requests[&id];
    assert_eq!(seen.tokens, b"hello".map(u32::from).into_iter().chain([EOS]).collect::<Vec<_>>());
    assert_eq!(seen.text, "hello");
    assert_eq!(seen.end, Some((FinishReason::Stop, None)));
    assert_eq!((seen.num_prompt_tokens, seen.num_output_tokens), (5, 6));
    assert!(seen.timings.first_token_us >= seen.timings.queued_us);
    assert!(seen.timings.total_us >= seen.timings.first_token_us);
}

#[test]
fn long_prompts_run_in_chunks_beside_decodes_and_all_come_back() {
    let mut options = echo_options();
    options.max_batched_tokens = 32;
    options.max_num_sequences = 8;
    options.kv_block_size = 16;
    options.kv_cache_bytes = 16 * 40;
    let engine = Engine::create(&options).unwrap();
    let mut expected = HashMap::new();
    for request in 0..60u32 {
        let prompt: Vec<u32> = (0..1 + request * 5 % 290).map(|index| (index * 7 + request) % 256).collect();
        let id = engine.enqueue(tokens_request(prompt.clone())).unwrap();
        expected.insert(id, prompt);
    }
    let mut collector = Collector::default();
    collector.wait(&engine, 60);
    for (id, prompt) in expected {
        let seen = &collector.requests[&id];
        assert_eq!(seen.tokens[..prompt.len()], prompt[..]);
        assert_eq!(seen.tokens[prompt.len()..], [EOS]);
    }
    let stats = engine.stats();
    assert!(stats.num_preemptions > 0, "the cache was meant to be too small: {stats:?}");
    assert_eq!((stats.num_accepted, stats.num_finished), (60, 60));
}

#[test]
fn the_length_limit_and_ignored_end_of_sequence_are_exact() {
    let engine = echo();
    let request = Request { max_tokens: 10, ignore_eos: true, ..tokens_request([1, 2, 3]) };
    let id = engine.enqueue(request).unwrap();
    let mut collector = Collector::default();
    collector.wait(&engine, 1);
    let seen = &collector.requests[&id];
    assert_eq!(seen.tokens, [1, 2, 3, EOS, EOS, EOS, EOS, EOS, EOS, EOS]);
    assert_eq!(seen.end, Some((FinishReason::Length, None)));
}

#[test]
fn a_stop_string_across_tokens_ends_the_text_before_it() {
    let engine = echo();
    let prompt = Prompt::Text { text: "one END two".into(), add_special_tokens: false, parse_special: false };
    let id = engine.enqueue(Request { stop_strings: vec!["END".into()], ..Request::new(prompt) }).unwrap();
    let mut collector = Collector::default();
    collector.wait(&engine, 1);
    let seen = &collector.requests[&id];
    assert_eq!(seen.text, "one ");
    assert_eq!(seen.end, Some((FinishReason::Stop, None)));
    assert_eq!(seen.tokens.len(), 7);
}

#[test]
fn a_stop_string_that_is_certain_only_at_the_end_is_the_reason() {
    let engine = echo();
    // After "ab" the match of "b" is certain only once "abcd" has failed, be it for want of further tokens.
    for (max_tokens, stops) in [(2, vec!["abcd", "b"]), (5, vec!["abcd", "b"]), (2, vec!["b"])] {
        let prompt = Prompt::Text { text: "abxyz".into(), add_special_tokens: false, parse_special: false };
        let stop_strings = stops.iter().map(|&stop| stop.to_owned()).collect();
        let id = engine.enqueue(Request { stop_strings, max_tokens, ..Request::new(prompt) }).unwrap();
        let mut collector = Collector::default();
        collector.wait(&engine, 1);
        let seen = &collector.requests[&id];
        assert_eq!(seen.text, "a", "{max_tokens} tokens, {stops:?}");
        assert_eq!(seen.end, Some((FinishReason::Stop, None)), "{max_tokens} tokens, {stops:?}");
    }
}

#[test]
fn the_count_of_ended_requests_never_goes_down() {
    let engine = echo();
    for _ in 0..50 {
        engine.enqueue(tokens_request([1])).unwrap();
    }
    let mut collector = Collector::default();
    collector.wait(&engine, 50);
    assert_eq!(engine.stats().num_finished, 50);
    // Requests that are refused hold a place while they are looked at, and are not counted.
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                    let tokens = (0..4000).map(|index| if index == 3999 { 1 << 20 } else { 1 });
                    engine.enqueue(tokens_request(tokens)).unwrap_err();
                }
            });
        }
        let start = Instant::now();
        let mut fewest = 50;
        while start.elapsed() < Duration::from_millis(300) {
            fewest = fewest.min(engine.stats().num_finished);
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(fewest, 50);
    });
}

#[test]
fn the_echo_device_keeps_to_the_memory_limit() {
    let mut options = echo_options();
    options.memory_limit_bytes = 1;
    assert!(!Engine::plan(&options).unwrap().fits);
    assert_eq!(Engine::create(&options).err().unwrap().status(), Status::MemoryLimit);
    // Within a limit the cache takes what is left, as a model's does.
    options.memory_limit_bytes = 1000;
    let plan = Engine::plan(&options).unwrap();
    assert_eq!((plan.num_kv_blocks, plan.max_model_len, plan.fits), (15, 960, true));
    assert_eq!(*Engine::create(&options).unwrap().memory(), plan);
}

#[test]
fn a_log_sink_that_panics_loses_lines_and_no_request() {
    let mut options = echo_options();
    options.logger = Logger::new(LogLevel::Debug, Arc::new(|_, _| panic!("a defect of the host")));
    let engine = Engine::create(&options).unwrap();
    let mut collector = Collector::default();
    for num_ended in 1..=2 {
        engine.enqueue(tokens_request([1])).unwrap();
        collector.wait(&engine, num_ended);
    }
    assert!(collector.requests.values().all(|seen| seen.end == Some((FinishReason::Stop, None))));
}

#[test]
fn a_full_queue_is_busy_and_a_polled_one_is_not() {
    let mut options = echo_options();
    options.device = "echo:2000".to_owned();
    options.max_queued_requests = 2;
    let engine = Engine::create(&options).unwrap();
    engine.enqueue(tokens_request(0..50)).unwrap();
    engine.enqueue(tokens_request(0..50)).unwrap();
    let error = engine.enqueue(tokens_request([1])).unwrap_err();
    assert_eq!(error.status(), Status::Busy);
    assert!(error.status().is_retryable());
    let mut collector = Collector::default();
    collector.wait(&engine, 1);
    engine.enqueue(tokens_request([1])).unwrap();
    collector.wait(&engine, 3);
}

#[test]
fn cancel_ends_a_request_and_is_idempotent() {
    let mut options = echo_options();
    options.device = "echo:1000".to_owned();
    let engine = Engine::create(&options).unwrap();
    let id = engine.enqueue(Request { max_tokens: 4000, ignore_eos: true, ..tokens_request(0..50) }).unwrap();
    let mut collector = Collector::default();
    while collector.requests.is_empty() {
        collector.take(engine.poll(Some(PATIENCE)).unwrap());
    }
    engine.cancel(id).unwrap();
    engine.cancel(id).unwrap();
    engine.cancel(12345).unwrap();
    collector.wait(&engine, 1);
    assert_eq!(collector.requests[&id].end, Some((FinishReason::Cancelled, None)));
    std::thread::sleep(Duration::from_millis(20));
    collector.take(engine.poll(Some(Duration::ZERO)).unwrap());
}

#[test]
fn a_deadline_ends_a_request_that_is_running_and_one_that_waits() {
    let mut options = echo_options();
    options.device = "echo:1000".to_owned();
    options.max_num_sequences = 1;
    let engine = Engine::create(&options).unwrap();
    let request = || Request {
        max_tokens: 4000,
        ignore_eos: true,
        timeout: Some(Duration::from_millis(50)),
        ..tokens_request(0..9)
    };
    let ids = [engine.enqueue(request()).unwrap(), engine.enqueue(request()).unwrap()];
    let mut collector = Collector::default();
    let start = Instant::now();
    collector.wait(&engine, 2);
    assert!(start.elapsed() < Duration::from_secs(2));
    for id in ids {
        assert_eq!(collector.requests[&id].end, Some((FinishReason::Deadline, None)));
    }
}

#[test]
fn a_consumer_that_does_not_poll_pauses_its_request_alone() {
    let mut options = echo_options();
    options.max_unread_tokens = 10;
    let engine = Engine::create(&options).unwrap();
    let slow_queue = engine.create_queue().unwrap();
    let request = Request {
        max_tokens: 500,
        ignore_eos: true,
        queue: Some(slow_queue.clone()),
        ..tokens_request(0..40)
    };
    let slow = engine.enqueue(request).unwrap();
    let start = Instant::now();
    while engine.stats().num_paused == 0 {
        assert!(start.elapsed() < PATIENCE, "the request was not paused");
        std::thread::yield_now();
    }
    let fast = engine.enqueue(Request { max_tokens: 9, ignore_eos: true, ..tokens_request(0..40) }).unwrap();
    let mut collector = Collector::default();
    collector.wait(&engine, 1);
    assert_eq!(collector.requests[&fast].tokens, (0..9).collect::<Vec<_>>());
    let mut slow_collector = Collector::default();
    let start = Instant::now();
    while slow_collector.num_ended() == 0 {
        assert!(start.elapsed() < PATIENCE, "the request did not go on: {:?}", engine.stats());
        slow_collector.take(slow_queue.poll(Some(Duration::from_millis(100))).unwrap());
    }
    let seen = &slow_collector.requests[&slow];
    assert_eq!(seen.tokens.len(), 500);
    assert_eq!(seen.tokens[..41], (0..40).chain([EOS]).collect::<Vec<_>>());
}

#[test]
fn an_abandoned_queue_cancels_its_requests() {
    let mut options = echo_options();
    options.device = "echo:500".to_owned();
    let engine = Engine::create(&options).unwrap();
    let queue = engine.create_queue().unwrap();
    let request =
        Request { max_tokens: 4000, ignore_eos: true, queue: Some(queue.clone()), ..tokens_request([1]) };
    engine.enqueue(request).unwrap();
    queue.abandon();
    let start = Instant::now();
    while engine.stats().num_finished == 0 {
        assert!(start.elapsed() < PATIENCE, "the request was not cancelled");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_abandoned_queue_cancels_its_requests_before_they_run() {
    let mut options = echo_options();
    options.device = "echo:5000".to_owned();
    options.max_num_sequences = 1;
    options.max_queued_requests = 3;
    let engine = Engine::create(&options).unwrap();
    let long = || Request { max_tokens: 4000, ignore_eos: true, ..tokens_request([1]) };
    engine.enqueue(long()).unwrap();
    let queue = engine.create_queue().unwrap();
    for _ in 0..2 {
        engine.enqueue(Request { queue: Some(queue.clone()), ..long() }).unwrap();
    }
    assert_eq!(engine.enqueue(long()).unwrap_err().status(), Status::Busy);
    queue.abandon();
    let wait_for_ends = |num_finished| {
        let start = Instant::now();
        while engine.stats().num_finished < num_finished {
            assert!(start.elapsed() < Duration::from_secs(2), "they still wait: {:?}", engine.stats());
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    wait_for_ends(2);
    // One that comes later, as from a thread that had the queue at hand already.
    engine.enqueue(Request { queue: Some(queue.clone()), ..long() }).unwrap();
    wait_for_ends(3);
    assert_eq!(engine.stats().num_running, 1);
    engine.enqueue(long()).unwrap();
    assert_eq!(queue.descriptor().unwrap_err().status(), Status::Closed);
}

#[test]
fn a_place_stays_taken_until_the_end_is_polled() {
    let mut options = echo_options();
    options.max_queued_requests = 4;
    let engine = Engine::create(&options).unwrap();
    let queue = engine.create_queue().unwrap();
    for _ in 0..3 {
        engine.enqueue(tokens_request([1])).unwrap();
    }
    engine.enqueue(Request { queue: Some(queue.clone()), ..tokens_request([1]) }).unwrap();
    let start = Instant::now();
    while engine.stats().num_finished < 4 {
        assert!(start.elapsed() < PATIENCE, "{:?}", engine.stats());
        std::thread::yield_now();
    }
    for _ in 0..50 {
        assert_eq!(engine.enqueue(tokens_request([1])).unwrap_err().status(), Status::Busy);
    }
    queue.abandon();
    engine.enqueue(tokens_request([1])).unwrap();
    assert_eq!(engine.enqueue(tokens_request([1])).unwrap_err().status(), Status::Busy);
    let mut collector = Collector::default();
    collector.wait(&engine, 4);
    for _ in 0..4 {
        engine.enqueue(tokens_request([1])).unwrap();
    }
}

#[test]
fn closers_wait_together_and_no_longer_than_promised() {
    let mut options = echo_options();
    options.device = "echo:6000000".to_owned();
    let engine = Engine::create(&options).unwrap();
    engine.enqueue(tokens_request([1])).unwrap();
    while engine.stats().num_steps == 0 {
        std::thread::yield_now();
    }
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| engine.close());
        }
    });
    drop(engine);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn close_ends_everything_in_flight_and_the_queue_can_be_drained() {
    let mut options = echo_options();
    options.device = "echo:1000".to_owned();
    let engine = Engine::create(&options).unwrap();
    for _ in 0..200 {
        engine.enqueue(Request { max_tokens: 4000, ignore_eos: true, ..tokens_request(0..30) }).unwrap();
    }
    let start = Instant::now();
    engine.close();
    assert!(start.elapsed() < Duration::from_secs(2));
    let mut collector = Collector::default();
    while let Ok(events) = engine.poll(None) {
        collector.take(events);
    }
    assert_eq!(collector.num_ended(), 200);
    assert!(
        collector.requests.values().all(|seen| seen.end == Some((FinishReason::Error, Some(Status::Closed))))
    );
    assert_eq!(engine.enqueue(tokens_request([1])).unwrap_err().status(), Status::Closed);
    assert_eq!(engine.poll(None).unwrap_err().status(), Status::Closed);
    engine.close();
}

#[test]
fn higher_priority_overtakes() {
    let mut options = echo_options();
    options.device = "echo:500".to_owned();
    options.max_num_sequences = 1;
    let engine = Engine::create(&options).unwrap();
    let low = engine.enqueue(Request { max_tokens: 200, ignore_eos: true, ..tokens_request([1]) }).unwrap();
    let high = engine
        .enqueue(Request { priority: 1, max_tokens: 5, ignore_eos: true, ..tokens_request([2]) })
        .unwrap();
    let mut collector = Collector::default();
    collector.wait(&engine, 1);
    assert!(collector.requests[&high].end.is_some(), "the request of higher priority ends first");
    collector.wait(&engine, 2);
    assert_eq!(collector.requests[&low].tokens.len(), 200);
}

#[test]
fn requests_that_can_never_run_are_refused_by_name() {
    let mut options = echo_options();
    options.max_model_len = 100;
    let engine = Engine::create(&options).unwrap();
    let refuse = |request: Request| engine.enqueue(request).unwrap_err();
    assert_eq!(refuse(tokens_request(0..100)).status(), Status::PromptTooLong);
    assert_eq!(refuse(Request { max_tokens: 91, ..tokens_request(0..10) }).status(), Status::PromptTooLong);
    let error = refuse(tokens_request([1, 2, 100_000]));
    assert_eq!(error.status(), Status::InvalidArgument);
    assert!(error.message().contains("prompt token 2 is 100000"), "{error}");
    assert!(refuse(tokens_request([])).message().contains("empty"));
    assert!(refuse(Request { min_tokens: 91, ..tokens_request(0..10) }).message().contains("min_tokens"));
    let foreign = echo().create_queue().unwrap();
    assert!(
        refuse(Request { queue: Some(foreign), ..tokens_request([1]) }).message().contains("another engine")
    );
    engine.enqueue(Request { max_tokens: 90, ..tokens_request(0..10) }).unwrap();
}

#[test]
fn options_that_make_no_sense_are_refused_by_name() {
    type Change = fn(&mut EngineOptions);
    let cases: [(&str, Change); 5] = [
        ("max_num_sequences", |options| options.max_num_sequences = 1 << 20),
        ("kv_block_size", |options| options.kv_block_size = 17),
        ("max_batched_tokens", |options| options.max_batched_tokens = 3),
        ("device", |options| options.device = "tpu".to_owned()),
        ("max_model_len", |options| options.max_model_len = usize::MAX),
    ];
    for (name, change) in cases {
        let mut options = echo_options();
        change(&mut options);
        let error = Engine::create(&options).err().unwrap_or_else(|| panic!("{name} was accepted"));
        assert!(error.message().contains(name), "{error} does not name {name}");
    }
}

#[test]
fn the_descriptor_is_readable_while_events_wait() {
    use std::os::fd::{AsFd, BorrowedFd};
    fn is_readable(fd: BorrowedFd<'_>, timeout_ms: i32) -> bool {
        let mut poll = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: i64::from(timeout_ms) * 1_000_000 };
        rustix::event::poll(&mut poll, Some(&timeout)).unwrap() == 1
    }
    let engine = echo();
    let queue = engine.create_queue().unwrap();
    let descriptor = queue.descriptor().unwrap();
    let fd = descriptor.as_fd();
    assert!(!is_readable(fd, 0));
    engine.enqueue(Request { queue: Some(queue.clone()), ..tokens_request([1, 2]) }).unwrap();
    assert!(is_readable(fd, 900));
    let mut collector = Collector::default();
    let start = Instant::now();
    while collector.num_ended() == 0 {
        assert!(start.elapsed() < PATIENCE);
        collector.take(queue.poll(Some(Duration::from_millis(100))).unwrap());
    }
    assert!(!is_readable(fd, 0));
    engine.close();
    assert!(is_readable(fd, 0), "a closed queue must wake its epoll loop");
}
