//! The operations of chat templates that look into values, each within a budget for the whole rendering.
//!
//! Rendering has a thread to itself, so the budget is a variable of the thread: values are visited in places
//! that pass nothing through.

use std::cell::Cell;
use std::time::Duration;

use minijinja::value::{Kwargs, Rest, Tuple, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, Output, State};
use minijinja_contrib::pycompat;
use rustix::time::{ClockId, clock_gettime};

use crate::token::template_growth::Growth;
use crate::token::{python_json, strftime};

type Result<T> = std::result::Result<T, Error>;

/// Processor time of one rendering.
pub(crate) const TIME_MAX: Duration = Duration::from_millis(50);
/// Values that one rendering may visit inside others; 64 bytes of text count as one.
const NUM_VISITS_MAX: u64 = 8 << 20;
/// Values within values.
const DEPTH_MAX: usize = 200;
/// Longest text that one operation may make.
pub(crate) const TEXT_BYTES_MAX: usize = 16 << 20;

/// Names of the guarded operations; the prefix keeps them apart from everything that a template can write.
pub(crate) mod op {
    /// Length of the prefix of guarded filters and tests.
    pub const PREFIX_BYTES: usize = 2;
    pub const CONCAT: &str = "$~";
    pub const EQ: &str = "$==";
    pub const NE: &str = "$!=";
    pub const LT: &str = "$<";
    pub const LE: &str = "$<=";
    pub const GT: &str = "$>";
    pub const GE: &str = "$>=";
    pub const IN: &str = "$in";
    pub const GET_ITEM: &str = "$[]";
    pub const SLICE: &str = "$[:]";
    pub const ADD: &str = "$+";
    pub const MUL: &str = "$*";
    pub const DICT: &str = "$dict";
    pub const LIST: &str = "$list";
    pub const TUPLE: &str = "$tuple";
    pub const CHANGED: &str = "$changed";
}

/// Filters that look into everything within their arguments, with the prefix of their guarded form.
pub(crate) const DEEP_FILTERS: [&str; 32] = [
    "$|dictsort",
    "$|e",
    "$|escape",
    "$|format",
    "$|groupby",
    "$|indent",
    "$|join",
    "$|lines",
    "$|lower",
    "$|capitalize",
    "$|map",
    "$|max",
    "$|min",
    "$|pprint",
    "$|reject",
    "$|rejectattr",
    "$|replace",
    "$|safe",
    "$|select",
    "$|selectattr",
    "$|sort",
    "$|split",
    "$|string",
    "$|sum",
    "$|title",
    "$|tojson",
    "$|trim",
    "$|unique",
    "$|upper",
    "$|batch",
    "$|slice",
    "$|zip",
];

/// Filters that look at their argument itself, and at most at how many items it has.
pub(crate) const SHALLOW_FILTERS: [&str; 16] = [
    "$/abs",
    "$/attr",
    "$/bool",
    "$/count",
    "$/d",
    "$/default",
    "$/first",
    "$/float",
    "$/int",
    "$/items",
    "$/last",
    "$/length",
    "$/list",
    "$/reverse",
    "$/round",
    "$/urlencode",
];

/// Tests that compare values, with the prefix of their guarded form.
pub(crate) const DEEP_TESTS: [&str; 19] = [
    "$?sameas",
    "$?eq",
    "$?equalto",
    "$?==",
    "$?ne",
    "$?!=",
    "$?lt",
    "$?lessthan",
    "$?<",
    "$?le",
    "$?<=",
    "$?gt",
    "$?greaterthan",
    "$?>",
    "$?ge",
    "$?>=",
    "$?in",
    "$?lower",
    "$?upper",
];

/// Tests that look at their argument itself.
pub(crate) const SHALLOW_TESTS: [&str; 22] = [
    "undefined",
    "defined",
    "none",
    "safe",
    "escaped",
    "boolean",
    "odd",
    "even",
    "divisibleby",
    "number",
    "integer",
    "int",
    "float",
    "string",
    "sequence",
    "iterable",
    "mapping",
    "startingwith",
    "endingwith",
    "true",
    "false",
    "filter",
];

/// What one rendering may still do.
#[derive(Clone, Copy)]
struct Budget {
    num_visits: u64,
    /// On the thread's own clock, so that a busy machine does not fail templates that do little.
    deadline: Option<Duration>,
}

thread_local! {
    static BUDGET: Cell<Budget> = const { Cell::new(Budget { num_visits: 0, deadline: None }) };
}

/// Gives the rendering that starts now on this thread its budget.
pub(crate) fn start_budget() {
    let deadline = Some(thread_time() + TIME_MAX);
    BUDGET.set(Budget { num_visits: NUM_VISITS_MAX, deadline });
}

/// Whether the rendering has taken too long.
pub(crate) fn is_out_of_time() -> bool {
    BUDGET.get().deadline.is_some_and(|deadline| thread_time() > deadline)
}

/// Processor time that this thread has used.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

fn refused(problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem.into())
}

fn charge(num_visits: u64) -> Result<()> {
    let mut budget = BUDGET.get();
    let before = budget.num_visits;
    budget.num_visits = before.checked_sub(num_visits).ok_or_else(|| refused("values are too large"))?;
    BUDGET.set(budget);
    // The clock is asked once for every 256 visits.
    if before / 256 != budget.num_visits / 256 && is_out_of_time() {
        return Err(refused(format!("rendering took more than {} ms", TIME_MAX.as_millis())));
    }
    Ok(())
}

/// Visits everything in `value`, as printing or comparing it will.
fn visit(value: &Value, depth: usize) -> Result<()> {
    charge(1 + value.as_str().map_or(0, str::len) as u64 / 64)?;
    if depth > DEPTH_MAX {
        return Err(refused(format!("values are nested more than {DEPTH_MAX} deep")));
    }
    match value.kind() {
        ValueKind::Map => {
            for key in value.try_iter()? {
                visit(&key, depth + 1)?;
                visit(&value.get_item(&key)?, depth + 1)?;
            }
        }
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()? {
                visit(&item, depth + 1)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn visit_all(values: &[Value]) -> Result<()> {
    values.iter().try_for_each(|value| visit(value, 0))
}

/// Keys are hashed, and no template needs containers for them.
fn check_key(key: &Value) -> Result<()> {
    if is_container(key) { Err(refused("a container cannot be a key")) } else { Ok(()) }
}

/// Whether the value holds others.
fn is_container(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map)
}

/// The items of a sequence as a list of its own. Lazy sequences hold those that they were made of, and a
/// chain of them would be walked by recursion.
fn items(sequence: &Value) -> Result<Vec<Value>> {
    charge(sequence.len().unwrap_or_default() as u64)?;
    let mut items = Vec::new();
    for item in sequence.try_iter()? {
        charge(1)?;
        items.push(item);
    }
    Ok(items)
}

fn without_laziness(value: Value) -> Result<Value> {
    if value.kind() == ValueKind::Iterable { items(&value).map(Value::from) } else { Ok(value) }
}

/// Adds the guarded operations and what templates expect of `transformers`.
pub(crate) fn install(environment: &mut Environment<'static>) {
    environment.set_formatter(|output: &mut Output, state: &mut State, value: &Value| {
        visit(value, 0)?;
        minijinja::escape_formatter(output, state, value)
    });
    environment.set_unknown_method_callback(call_method);
    install_comparisons(environment);
    install_constructors(environment);
    install_filters_and_tests(environment);
    environment.add_function(op::CONCAT, |a: &Value, b: &Value| concat(a, b));
    environment.add_function(op::ADD, |a: &Value, b: &Value| add(a, b));
    environment.add_function(op::MUL, |a: &Value, b: &Value| multiply(a, b));
    environment.add_function(op::SLICE, |value: &Value, start: Value, stop: Value, step: Value| {
        slice(value, bound(&start)?, bound(&stop)?, bound(&step)?)
    });
    environment.add_function(op::GET_ITEM, |container: &Value, key: &Value| {
        check_key(key)?;
        if container.kind() == ValueKind::Iterable {
            // An iterable is walked up to the index.
            charge(container.len().unwrap_or_default() as u64)?;
        }
        container.get_item(key)
    });
    environment.add_function(op::CHANGED, |state: &mut State, loop_object: Value, args: Rest<Value>| {
        visit_all(&args)?;
        loop_object.call_method(state, "changed", &args)
    });
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", |message: Value| -> Result<Value> {
        Err(refused(message.as_str().unwrap_or("raise_exception")))
    });
    environment.add_function("strftime_now", |format: &str| strftime::now(format));
    environment.add_function("debug", || Err::<Value, _>(refused("debug() is not available")));
    environment.add_function("dict", |base: Option<Value>, update: Kwargs| {
        visit_all(base.as_slice())?;
        visit(&Value::from(update.clone()), 0)?;
        minijinja::functions::dict(base, update)
    });
    environment.add_function("namespace", |values: Kwargs| {
        visit(&Value::from(values.clone()), 0)?;
        minijinja::functions::namespace(Some(Value::from(values).into()))
    });
}

fn install_filters_and_tests(environment: &mut Environment<'static>) {
    for guarded in DEEP_FILTERS.into_iter().chain(SHALLOW_FILTERS) {
        let filter = &guarded[op::PREFIX_BYTES..];
        let is_deep = DEEP_FILTERS.contains(&guarded);
        environment.add_function(guarded, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = arguments(args);
            if is_deep {
                visit_all(&args)?;
            }
            if let Some((value, args)) = args.split_first() {
                check_growth(filter, value, args)?;
            }
            without_laziness(state.apply_filter(filter, &args)?)
        });
    }
    for guarded in DEEP_TESTS {
        let test = &guarded[op::PREFIX_BYTES..];
        environment.add_function(guarded, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = arguments(args);
            visit_all(&args)?;
            state.perform_test(test, &args)
        });
    }
}

/// The arguments as they were passed on, keyword arguments last.
fn arguments(args: Rest<ValueOrKwargs>) -> Vec<Value> {
    args.0.into_iter().map(ValueOrKwargs::into_value).collect()
}

fn install_comparisons(environment: &mut Environment<'static>) {
    type Comparison = fn(&Value, &Value) -> bool;
    let comparisons: [(&'static str, Comparison); 6] = [
        (op::EQ, |a, b| a == b),
        (op::NE, |a, b| a != b),
        (op::LT, |a, b| a < b),
        (op::LE, |a, b| a <= b),
        (op::GT, |a, b| a > b),
        (op::GE, |a, b| a >= b),
    ];
    for (name, compare) in comparisons {
        environment.add_function(name, move |a: &Value, b: &Value| -> Result<bool> {
            visit(a, 0)?;
            visit(b, 0)?;
            Ok(compare(a, b))
        });
    }
    environment.add_function(op::IN, |state: &mut State, item: Value, container: Value| {
        if container.kind() == ValueKind::Map {
            check_key(&item)?;
        } else {
            visit(&item, 0)?;
            visit(&container, 0)?;
        }
        state.perform_test("in", &[item, container])
    });
}

fn install_constructors(environment: &mut Environment<'static>) {
    environment.add_function(op::LIST, |items: Rest<Value>| -> Result<Value> {
        visit_all(&items)?;
        Ok(Value::from(items.0))
    });
    environment.add_function(op::TUPLE, |items: Rest<Value>| -> Result<Value> {
        visit_all(&items)?;
        Ok(Value::from(Tuple::from(items.0)))
    });
    environment.add_function(op::DICT, |pairs: Rest<Value>| -> Result<Value> {
        visit_all(&pairs)?;
        let pair = |pair: &[Value]| check_key(&pair[0]).map(|()| (pair[0].clone(), pair[1].clone()));
        Ok(Value::from_pairs(pairs.chunks_exact(2).map(pair).collect::<Result<Vec<_>>>()?))
    });
}

/// Python's methods of texts, lists and dicts.
fn call_method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value> {
    visit_all(args)?;
    if value.kind() != ValueKind::Map {
        visit(value, 0)?;
    }
    check_growth(method, value, args)?;
    without_laziness(pycompat::unknown_method_callback(state, value, method, args)?)
}

/// Refuses a filter or method whose result would be too large.
fn check_growth(operation: &str, value: &Value, args: &[Value]) -> Result<()> {
    match Growth::of(operation, value, args) {
        Some(growth) if !growth.is_allowed() => {
            Err(refused(format!("the result of {operation} is too large")))
        }
        Some(Growth::Values(num_values)) => charge(num_values as u64),
        _ => Ok(()),
    }
}

fn concat(a: &Value, b: &Value) -> Result<String> {
    visit(a, 0)?;
    visit(b, 0)?;
    let text = match (a.as_str(), b.as_str()) {
        (Some(a), Some(b)) => [a, b].concat(),
        _ => format!("{a}{b}"),
    };
    if text.len() > TEXT_BYTES_MAX { Err(refused("a text is too long")) } else { Ok(text) }
}

fn add(a: &Value, b: &Value) -> Result<Value> {
    if let (Some(a), Some(b)) = (integer(a), integer(b)) {
        return a.checked_add(b).map(Value::from).ok_or_else(|| refused("a sum is too large"));
    }
    if a.as_str().is_some() && b.as_str().is_some() {
        return concat(a, b).map(Value::from);
    }
    let is_sequence = |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
    if is_sequence(a) && is_sequence(b) {
        let mut sum = items(a)?;
        sum.extend(items(b)?);
        return Ok(if a.is_tuple() && b.is_tuple() {
            Value::from(Tuple::from(sum))
        } else {
            Value::from(sum)
        });
    }
    match (f64::try_from(a.clone()), f64::try_from(b.clone())) {
        (Ok(a), Ok(b)) => Ok(Value::from(a + b)),
        _ => Err(refused(format!("cannot add {} and {}", a.kind(), b.kind()))),
    }
}

fn multiply(a: &Value, b: &Value) -> Result<Value> {
    if let (Some(a), Some(b)) = (integer(a), integer(b)) {
        return a.checked_mul(b).map(Value::from).ok_or_else(|| refused("a product is too large"));
    }
    let (repeated, count) = if integer(b).is_some() { (a, b) } else { (b, a) };
    if let Some(count) = integer(count) {
        let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
        if let Some(text) = repeated.as_str() {
            return match text.len().checked_mul(count) {
                Some(num_bytes) if num_bytes <= TEXT_BYTES_MAX => Ok(Value::from(text.repeat(count))),
                _ => Err(refused("a text is too long")),
            };
        }
        if matches!(repeated.kind(), ValueKind::Seq | ValueKind::Iterable) {
            let items = items(repeated)?;
            charge(items.len().saturating_mul(count).saturating_mul(4) as u64)?;
            return Ok(std::iter::repeat_n(items, count).flatten().collect());
        }
    }
    match (f64::try_from(a.clone()), f64::try_from(b.clone())) {
        (Ok(a), Ok(b)) => Ok(Value::from(a * b)),
        _ => Err(refused(format!("cannot multiply {} by {}", a.kind(), b.kind()))),
    }
}

fn integer(value: &Value) -> Option<i64> {
    let is_integer = value.kind() == ValueKind::Bool || value.is_integer();
    if is_integer { i64::try_from(value.clone()).ok() } else { None }
}

/// A bound or step of a slice.
fn bound(value: &Value) -> Result<Option<i64>> {
    if value.is_none() { Ok(None) } else { i64::try_from(value.clone()).map(Some) }
}

/// Python's `value[start:stop:step]`.
fn slice(value: &Value, start: Option<i64>, stop: Option<i64>, step: Option<i64>) -> Result<Value> {
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(refused("a slice's step cannot be 0"));
    }
    if let Some(text) = value.as_str() {
        charge(text.len() as u64 / 64)?;
        let chars: Vec<char> = text.chars().collect();
        let text: String = slice_indexes(chars.len(), start, stop, step).map(|index| chars[index]).collect();
        return Ok(Value::from(text));
    }
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => Ok(Value::from(Vec::<Value>::new())),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = items(value)?;
            let slice = slice_indexes(items.len(), start, stop, step).map(|index| items[index].clone());
            Ok(Value::from(slice.collect::<Vec<Value>>()))
        }
        other => Err(refused(format!("cannot slice {other}"))),
    }
}

fn slice_indexes(
    length: usize,
    start: Option<i64>,
    stop: Option<i64>,
    step: i64,
) -> impl Iterator<Item = usize> {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    let (lowest, highest) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let clamp = |index: i64| (if index < 0 { index + length } else { index }).clamp(lowest, highest);
    let (first, end) = if step > 0 { (lowest, highest) } else { (highest, lowest) };
    let (start, stop) = (start.map_or(first, clamp), stop.map_or(end, clamp));
    let next = move |&index: &i64| index.checked_add(step);
    std::iter::successors(Some(start), next)
        .take_while(move |&index| if step > 0 { index < stop } else { index > stop })
        .filter_map(|index| usize::try_from(index).ok())
}

fn tojson(value: Value, options: Kwargs) -> Result<String> {
    let style = python_json::Style {
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        indent: options.get("indent")?,
        separators: match options.get::<Option<Vec<String>>>("separators")?.as_deref() {
            Some([item, key]) => Some((item.clone(), key.clone())),
            Some(_) => return Err(refused("tojson: separators must be a pair")),
            None => None,
        },
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    python_json::dumps(&value, style).map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_pythons() {
        let slice = |start, stop, step| slice_indexes(5, start, stop, step).collect::<Vec<_>>();
        assert_eq!(slice(None, None, 1), [0, 1, 2, 3, 4]);
        assert_eq!(slice(Some(1), None, 1), [1, 2, 3, 4]);
        assert_eq!(slice(Some(-2), None, 1), [3, 4]);
        assert_eq!(slice(None, Some(-1), 2), [0, 2]);
        assert_eq!(slice(Some(3), Some(99), 1), [3, 4]);
        assert_eq!(slice(None, None, -1), [4, 3, 2, 1, 0]);
        assert_eq!(slice(None, Some(-99), -2), [4, 2, 0]);
        assert_eq!(slice(Some(-99), Some(99), 1), [0, 1, 2, 3, 4]);
        assert_eq!(slice(Some(1), Some(4), -1), [0usize; 0]);
        assert_eq!(slice(Some(99), Some(1), -1), [4, 3, 2]);
        assert_eq!(slice(Some(i64::MIN), Some(i64::MAX), i64::MAX), [0]);
        assert_eq!(slice_indexes(0, None, None, -1).count(), 0);
    }
}
