use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;

fn compile(source: &str) -> Result<ChatTemplate> {
    ChatTemplate::compile(TemplateSource {
        place: "test",
        source,
        bos_token: Some("<s>"),
        eos_token: Some("</s>"),
    })
}

fn render_with(source: &str, messages: Value) -> Result<String> {
    compile(source)?.render(&messages, true)
}

fn render(source: &str) -> Result<String> {
    render_with(source, json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " Yo "}]))
}

#[test]
fn templates_see_what_transformers_gives_them() {
    for (source, expected) in [
        ("{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}", "<s>Hi</s>"),
        ("{% if add_generation_prompt %}A{% endif %}{% if tools is none %}B{% endif %}{{ nothing }}", "AB"),
        (
            "{% for m in messages %}\n  {% if loop.last %}\n  {{ m.role }}\n  {% endif %}\n{% endfor %}\n",
            "  assistant\n",
        ),
        ("{{ messages[1].content.strip() | upper }}|{{ 'a,b'.split(',')[-1] }}", "YO|b"),
        ("{{ messages[1:] | map(attribute='role') | join(',') }}", "assistant"),
        (
            "{% set ns = namespace(n=0, l=[]) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.l = ns.l + [m.role] %}{% endfor %}{{ ns.n }}{{ ns.l | length }}",
            "22",
        ),
        (
            "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i > 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "02",
        ),
        ("{{ {'a': [1, true, none], 'b': '<é>'} | tojson }}", r#"{"a": [1, true, null], "b": "<é>"}"#),
        (
            "{% macro turn(r, c='x') %}[{{ r }}:{{ c }}]{% endmacro %}{{ turn('u') }}{{ turn('a', c='y') }}",
            "[u:x][a:y]",
        ),
        ("{% generation %}a{%- endgeneration -%} b", "ab"),
        (
            "{{ 'x' * 3 }}{{ 2 * 3 }}{{ 0.5 * 4 }}{{ ([1] * 2) | length }}{{ [1, 2, 3][::-1][0] }}",
            "xxx62.023",
        ),
        (
            "{{ 'b' in 'abc' }} {{ 'role' in messages[0] }} {{ 'user' in ['user'] }} {{ 1 not in [2] }}",
            "True True True True",
        ),
        ("{{ messages[0].get('none', 'd') }}{{ messages[0].items() | length }}{{ dict(a=1)['a'] }}", "d21"),
        (
            "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ 'a' if messages is sequence }}",
            "1a",
        ),
        (
            "{{ messages[5] is defined }}{{ messages[0].content is string }}{{ messages[0] is mapping }}",
            "FalseTrueTrue",
        ),
        ("{%- set x = 'a' ~ 1 ~ true -%}\n{{ x }}", "a1True"),
        ("{{ 1 + 2 }}{{ 1 + 0.5 }}{{ 'a' + 'b' }}{{ ([1] + [2, 3]) | length }}{{ true + 1 }}", "31.5ab32"),
        ("{{ strftime_now('%Y') | int > 2000 }}", "True"),
    ] {
        assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
    }
}

#[test]
fn a_template_can_refuse() {
    let error = render("{{ raise_exception('roles must alternate') }}").unwrap_err();
    assert_eq!(error.status(), Status::TemplateFailed);
    assert!(error.message().contains("roles must alternate"), "{error}");
}

#[test]
fn broken_templates_are_named_with_their_line() {
    for (source, text) in [
        ("a\n{% if %}", "line 2"),
        ("{{ x | nofilter }}", "nofilter"),
        ("{% if x is notest %}{% endif %}", "notest"),
        ("{{ 1 < x < 3 }}", "chain of comparisons"),
    ] {
        let error = compile(source).unwrap_err();
        assert!(error.message().starts_with("test: "), "{error}");
        assert!(error.message().contains(text) || error.message().contains(":2"), "{error}");
    }
}

/// Values that nest deeper, or grow, with every turn of a loop.
fn growing() -> Vec<String> {
    let turns =
        "{% set ns = namespace(x=[], y=[]) %}{% for i in range(100000) %}{% set ns.x = GROW %}{% endfor %}";
    let grown = [
        "[ns.x]",
        "{'a': ns.x}",
        "(ns.x, 1)",
        "dict(a=ns.x)",
        "ns.x | batch(1)",
        "ns.x[0:]",
        "ns.x | reverse",
        "ns.x * 1",
        "ns.x + [ns.x]",
        "[1] + ns.x",
        "ns.x | chain([1])",
        "ns.x | zip([1])",
        "ns.x | list",
        "namespace(a=ns.x)",
        "ns",
        "[ns]",
        "ns.x | map('list')",
        "ns.x ~ 'aaaaaaaaaaaaaaaaaa'",
        "ns.x * 2",
        "(ns.x | string) + (ns.x | string)",
        "ns.x | tojson",
        "ns.x | groupby('a')",
        "ns.x | slice(3)",
    ];
    grown.iter().map(|grow| turns.replace("GROW", grow) + "{{ ns.x }}").collect()
}

/// Single operations that would make gigabytes.
#[test]
fn results_of_gigabytes_are_refused() {
    for source in [
        "{{ range(99999) | join('a' * 100000) }}",
        "{{ ('a' * 100000).replace('a', 'a' * 100000) }}",
        "{{ ('a' * 1000000) | replace('', 'b' * 1000) }}",
        "{% set x = 'a' * 8000000 %}{{ ''.join([x] * 31) }}",
        "{% set x = 'a' * 8000000 %}{{ [x] * 31 | join }}{{ ([x] * 31) | join }}",
        "{{ ('a ' * 5000000).split(' ') | length }}",
        "{{ ('a\\n' * 5000000).splitlines() | length }}",
        "{{ [1] | batch(1000000000, 'x') | list }}",
        "{{ [1] | slice(1000000000) | list }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ '{:>999999999}'.format('a') }}",
        "{{ 'a' | indent(999999999) }}",
    ] {
        let start = Instant::now();
        let result = compile(source).and_then(|template| template.render(&serde_json::json!([]), true));
        assert!(result.is_err(), "{source}: {:?}", result.map(|text| text.len()));
        assert!(start.elapsed() < Duration::from_secs(2), "{source} took {:?}", start.elapsed());
    }
}

/// Uses of a list that holds another twice, sixty times over.
fn sharing() -> Vec<String> {
    let shared = "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}\
                  {% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}";
    let uses = [
        "{{ ns.x }}",
        "{% set z %}{{ ns.x }}{% endset %}",
        "{{ ns.x ~ '' }}",
        "{{ ns.x | tojson }}",
        "{{ ns.x | string }}",
        "{{ ns.x == ns.y }}",
        "{{ ns.x < ns.y }}",
        "{{ ns.x in [ns.y] }}",
        "{{ [ns.x, ns.y] | unique }}",
        "{{ [ns.x, ns.y] | sort }}",
        "{{ ns.x | pprint }}",
        "{{ [ns.x] | join('') }}",
        "{{ '%s' | format(ns.x) }}",
        "{{ '{}'.format(ns.x) }}",
        "{{ ','.join([ns.x]) }}",
        "{{ {'a': 1}[ns.x] }}",
        "{{ {ns.x: 1} }}",
        "{{ raise_exception(ns.x) }}",
        "{{ ns.x is eq(ns.y) }}",
        "{{ ns.x is sameas(ns.y) }}",
        "{{ [ns.x] | select('eq', ns.y) }}",
        "{{ debug() }}",
        "{% for i in [1, 2] %}{{ loop.changed([ns.x]) }}{% endfor %}",
        "{{ ns.x.count(ns.y) }}",
        "{{ [[1]] | map('replace', ns.x, 'a') }}",
        "{{ ns }}",
        "{{ 'a'.replace('a', ns.x) }}",
    ];
    uses.iter().map(|use_it| format!("{shared}{use_it}")).collect()
}

/// `num` times `link` within one expression, in lines that are short enough.
fn chain(start: &str, link: &str, num: usize) -> String {
    let line = link.repeat(num.min(1000)) + "\n";
    format!("{{{{ {start}{} }}}}", line.repeat(num.div_ceil(1000)))
}

/// Loops and operations without end or measure.
fn endless() -> Vec<String> {
    vec![
        "{% for i in range(100000) %}{% for j in range(100000) %}{% set x = j %}{% endfor %}{% endfor %}"
            .to_owned(),
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}".to_owned(),
        "{% macro f(x) %}{{ f([x, x]) }}{% endmacro %}{{ f(0) }}".to_owned(),
        "{% for i in range(100000) recursive %}{{ loop(range(100000)) }}{% endfor %}".to_owned(),
        "{% for i in range(100000) %}{{ 'a' * 1000 }}{% endfor %}".to_owned(),
        "{{ 'a' * 100000000 }}".to_owned(),
        "{{ [1] * 100000000 }}".to_owned(),
        "{{ '%099999999d' | format(1) }}{{ '{:>99999999}'.format(1) }}".to_owned(),
        "{{ '{:>9999999}'.format(1) }}".to_owned(),
        "{{ 'a' | indent(99999999) }}".to_owned(),
        "{{ [1] | tojson(indent=99999999) }}".to_owned(),
        "{{ 7 is divisibleby(0) }}".to_owned(),
        "{% include 'chat_template' %}".to_owned(),
        "{% extends 'chat_template' %}".to_owned(),
        "{% import 'chat_template' as x %}".to_owned(),
    ]
}

/// Sources that are long, and would be deep for a compiler that recurses.
fn oversized() -> Vec<String> {
    let mut sources = vec![
        "{{ ".to_owned() + &"(\n".repeat(100_000),
        "{% if 1 %}\n".repeat(90_000),
        "{% if 1 %}".to_owned() + &"{% elif 1 %}\n".repeat(80_000) + "{% endif %}",
        "{% for i in x %}\n".repeat(60_000),
        "{{\n".repeat(300_000),
        "{#\n".repeat(300_000),
        "{% raw %}\n".repeat(90_000),
        "{%\n".repeat(300_000),
        "{{ '".to_owned() + &"\\\\\n".repeat(300_000),
        "{% set x = 1 %}\n".repeat(60_000),
        format!("{{{{ [{}] }}}}", "1,\n".repeat(100_000)),
        chain("a", "[0]", 3000) + &chain("a", "()", 3000),
    ];
    for (start, link) in [
        ("1", "+1"),
        ("1", " ~ 1"),
        ("a", ".b"),
        ("a", "|upper"),
        ("", "not "),
        ("", "-"),
        ("1", " if 1 else 1"),
        ("1", "**1"),
        ("1", " and 1"),
        ("1", " < 1"),
        ("1", " is odd"),
        ("1", " in 1"),
        ("1", "//1"),
    ] {
        sources.extend([chain(start, link, 100_000), chain(start, link, 1300).replace("- }}", "-1 }}")]);
    }
    sources
}

#[test]
fn hostile_templates_end_soon_with_an_error_or_an_end() {
    for source in [growing(), sharing(), endless(), oversized()].concat() {
        let start = Instant::now();
        let outcome = render(&source);
        let name: String = source.chars().take(160).collect();
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}: {name}", start.elapsed());
        if let Err(error) = outcome {
            let known = [Status::TemplateFailed, Status::ModelInvalid, Status::ModelUnsupported];
            assert!(known.contains(&error.status()), "{error}: {name}");
            assert!(error.message().len() < 2000, "{name}");
        }
    }
}

#[test]
fn output_and_time_are_bounded() {
    let long = "{% for i in range(100) %}{{ messages[0].content }}{% endfor %}";
    let message = json!([{"role": "user", "content": "x".repeat(1 << 20)}]);
    assert_eq!(render_with(long, message).unwrap_err().status(), Status::TemplateFailed);
    let template = "x".repeat(TEMPLATE_BYTES_MAX + 1);
    assert_eq!(compile(&template).unwrap_err().status(), Status::ModelInvalid);
}

#[test]
fn long_chats_fit_the_budget() {
    let turns: Vec<Value> =
        (0..2000).map(|n| json!({"role": "user", "content": format!("message {n}")})).collect();
    let source = "{% for m in messages %}{% if loop.index0 == messages | length - 1 %}!{% endif %}<|{{ m['role'] }}|>\
                  {{ m['content'] | trim + '\n' }}{% endfor %}";
    let text = render_with(source, Value::from(turns)).unwrap();
    assert!(text.ends_with("!<|user|>message 1999\n"));
}
