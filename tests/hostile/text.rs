//! Tokenizer files and chat templates that lie, loop or take memory.

use serde_json::{Value, json};

use super::tool::{Model, answer, assert_refused, generate, tokenizer};

const FILE: &str = "tokenizer.json";

fn with_tokenizer(content: impl AsRef<[u8]>) -> Model {
    let model = Model::sound();
    model.with(FILE, content);
    model
}

/// The sound tokenizer with the field at a JSON pointer replaced.
fn changed(pointer: &str, value: Value) -> Model {
    let mut content = tokenizer();
    *content.pointer_mut(pointer).unwrap() = value;
    with_tokenizer(content.to_string())
}

/// The sound tokenizer with another entry in its vocabulary.
fn with_entry(token: &str, id: Value) -> Model {
    let mut content = tokenizer();
    content["model"]["vocab"][token] = id;
    with_tokenizer(content.to_string())
}

fn with_regex(regex: &str) -> Model {
    changed(
        "/pre_tokenizer",
        json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false}),
    )
}

/// `depth` sequences within each other, around `innermost`.
fn nested(depth: usize, list: &str, innermost: &str) -> String {
    let open = format!("{{\"type\":\"Sequence\",\"{list}\":[");
    [open.repeat(depth), format!("{{\"type\":\"{innermost}\"}}"), "]}".repeat(depth)].concat()
}

#[test]
fn vocabularies_and_merges() {
    for (case, model, word) in [
        ("no JSON", with_tokenizer("{"), "line 1"),
        ("no model", with_tokenizer("{}"), "model"),
        ("a model of another type", changed("/model/type", json!("WordPiece")), "WordPiece"),
        ("an id below 0", with_entry("zz", json!(-1)), "-1"),
        ("an id of 2^32 - 1", with_entry("zz", json!(u32::MAX)), "4294967295"),
        ("an id of 2^64", with_entry("zz", json!(1e20)), "1e+20"),
        ("an id twice", with_entry("zz", json!(3)), "id 3"),
        ("an id past the model's rows", with_entry("zz", json!(89)), "90 tokens"),
        ("a token of 9 KB", with_entry(&"z".repeat(9000), json!(61)), "9000"),
        ("a merge of unknown tokens", changed("/model/merges/0", json!(["a", "zz"])), "merges[0]"),
        ("a merge into no token", changed("/model/merges/0", json!(["ab", "c"])), "merges[0]"),
        (
            "a merge longer than every token",
            changed("/model/merges/0", json!(["a", "b".repeat(8000)])),
            "merges[0]",
        ),
        ("a merge of one token", changed("/model/merges/0", json!(["a"])), "pair"),
        ("a merge without a space", changed("/model/merges/0", json!("ab")), "merge"),
        ("an unknown token that is not there", changed("/model/unk_token", json!("zz")), "unk_token"),
        ("an added token with another id", changed("/added_tokens/0/id", json!(5)), "<s>"),
        (
            "an added token past the rows",
            changed("/added_tokens/0", json!({"id": 500, "content": "zz"})),
            "501 tokens",
        ),
    ] {
        assert_refused(case, model.path(), &[model.path().to_str().unwrap(), word]);
    }
    let twice = tokenizer().to_string().replacen("\"a\":3", "\"a\":3,\"a\":70", 1);
    assert_refused("a token twice", with_tokenizer(twice).path(), &[FILE, "vocab"]);
}

/// The `tokenizers` crate cuts the right half of a merge at the length of this prefix.
#[test]
fn a_prefix_longer_than_the_merged_tokens() {
    let mut content = tokenizer();
    content["model"]["continuing_subword_prefix"] = json!("é##########");
    assert_refused("a long prefix", with_tokenizer(content.to_string()).path(), &[FILE, "merges[0]"]);
}

#[test]
fn steps_of_the_pipeline() {
    let replace = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(200)});
    let precompiled = json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="});
    for (case, model, word) in [
        ("an expression that is none", with_regex("("), "pre_tokenizer"),
        ("an expression nested deep", with_regex(&"(".repeat(4000)), "pre_tokenizer"),
        ("repetitions of repetitions", with_regex("((((a{1000}){1000}){1000}){1000})"), "pre_tokenizer"),
        (
            "repetitions with a look ahead",
            with_regex("(?=((((a{1000}){1000}){1000}){1000}))"),
            "pre_tokenizer",
        ),
        ("an expression of 100 KB", with_regex(&"(?=a)(b)".repeat(12_500)), "Regex has 100000 bytes"),
        (
            "pieces of no length",
            changed("/pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
            "length is 0",
        ),
        ("an unknown step", changed("/pre_tokenizer", json!({"type": "x"})), "pre_tokenizer"),
        (
            "replacements that grow",
            changed("/normalizer", json!({"type": "Sequence", "normalizers": vec![replace; 4]})),
            "Replace",
        ),
        (
            "a prefix of 4 MB",
            changed("/normalizer", json!({"type": "Prepend", "prepend": "a".repeat(4_000_000)})),
            "prepend",
        ),
        ("a table of 4 GB", changed("/normalizer", precompiled), "precompiled_charsmap"),
        ("no decoder", changed("/decoder", json!(null)), "decoder"),
        ("an unknown decoder", changed("/decoder", json!({"type": "WordPiece"})), "WordPiece"),
        (
            "a decoder that grows",
            changed(
                "/decoder",
                json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(100)}),
            ),
            "decoder",
        ),
    ] {
        assert_refused(case, model.path(), &[FILE, word]);
    }
    for (section, list, innermost) in [
        ("normalizer", "normalizers", "NFC"),
        ("pre_tokenizer", "pretokenizers", "ByteLevel"),
        ("decoder", "decoders", "Fuse"),
    ] {
        let mut content = tokenizer();
        content[section] = json!("HERE");
        let content = content.to_string().replace("\"HERE\"", &nested(100_000, list, innermost));
        assert_refused("deep nesting", with_tokenizer(content).path(), &[FILE, section]);
    }
}

#[test]
fn tokens_that_would_fill_the_memory() {
    let scored = |tokens: Vec<String>| {
        let tokens = tokens.into_iter().map(|token| json!([token, -1.0]));
        let vocab: Value = std::iter::once(json!(["<unk>", 0.0])).chain(tokens).collect();
        let mut content = tokenizer();
        content["model"] = json!({"type": "Unigram", "unk_id": 0, "vocab": vocab});
        content["added_tokens"] = json!([]);
        with_tokenizer(content.to_string())
    };
    let mut random = Random(1);
    let long = scored((0..10).map(|_| random.text(600)).collect());
    assert_refused("a scored token of 600 bytes", long.path(), &[FILE, "600"]);
    let many = scored((0..9000).map(|_| random.text(500)).collect());
    assert_refused("scored tokens with little in common", many.path(), &[FILE, "search tree"]);
    let added: Value = (0..90)
        .map(|index| json!({"id": 61 + index, "content": random.text(8000), "normalized": false}))
        .collect();
    assert_refused("long added tokens", changed("/added_tokens", added).path(), &["151 tokens"]);
    let merges: Value = vec![json!(["a", "b"]); (1 << 20) + 1].into();
    assert_refused("a million merges", changed("/model/merges", merges).path(), &[FILE, "1048576 merges"]);
    let mut content = tokenizer();
    for index in 0..200_000 {
        content["model"]["vocab"][format!("token {index}")] = (100 + index).into();
    }
    assert_refused("200,000 tokens", with_tokenizer(content.to_string()).path(), &["200100 tokens"]);
}

/// Xorshift (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn text(&mut self, num_chars: usize) -> String {
        let mut next = || {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            char::from(b'a' + (self.0 % 26) as u8)
        };
        (0..num_chars).map(|_| next()).collect()
    }
}

#[test]
fn files_beside_the_tokenizer() {
    for (file, content, word) in [
        ("tokenizer_config.json", "[", "line 1"),
        ("tokenizer_config.json", "{\"bos_token\": 7}", "tokenizer_config.json"),
        ("tokenizer_config.json", "{\"eos_token\": \"a\", \"eos_token\": \"b\"}", "eos_token"),
        ("generation_config.json", "{\"temperature\": -1}", "temperature"),
        ("generation_config.json", "{\"temperature\": 1e300}", "temperature"),
        ("generation_config.json", "{\"top_p\": 0}", "top_p"),
        ("generation_config.json", "{\"top_k\": 0.5}", "top_k"),
        ("generation_config.json", "{\"repetition_penalty\": 0}", "repetition_penalty"),
        ("generation_config.json", "{\"eos_token_id\": 89}", "eos_token_id"),
        ("generation_config.json", "{\"eos_token_id\": [2, 4294967296]}", "eos_token_id"),
        ("generation_config.json", "{\"eos_token_id\": \"x\"}", "generation_config.json"),
    ] {
        let model = Model::sound();
        model.with(file, content);
        assert_refused(content, model.path(), &[file, word]);
    }
}

/// A template may be refused when the model is loaded or when it is used.
#[test]
fn chat_templates() {
    let loops = "{% for a in range(9999) %}".repeat(4) + &"{% endfor %}".repeat(4);
    let doubling = "{% set ns = namespace(x=[1]) %}\
        {% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}";
    for (case, template, word) in [
        ("loops that never end", loops.as_str(), "template"),
        ("a macro that calls itself", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("a loop that calls itself", "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "recursion"),
        ("a text of a gigabyte", "{{ 'a' * 1000000000 }}", "template"),
        ("a list of a billion", "{{ [1] * 1000000000 }}", "template"),
        (
            "output without end",
            "{% set x = 'a' * 1000000 %}{% for i in range(1000) %}{{ x }}{% endfor %}",
            "template",
        ),
        ("a list that doubles", doubling, "template"),
        ("a division by 0", "{{ 1 // 0 }}", "template"),
        ("divisible by 0", "{% if 4 is divisibleby(0) %}{% endif %}x", "template"),
        ("a power that overflows", "{{ 10 ** 10 ** 10 }}", "template"),
        ("a range without end", "{{ range(100000000000) | list }}", "template"),
        (
            "brackets nested deep",
            &format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000)),
            "template",
        ),
        ("conditions nested deep", &("{% if 1 %}".repeat(3000) + &"{% endif %}".repeat(3000)), "template"),
        ("a filter that is none", "{{ messages | nope }}", "nope"),
        ("a test that is none", "{{ messages is nope }}", "nope"),
        ("a file that is included", "{% include '/etc/passwd' %}", "template"),
        ("a wide number", "{{ '%1000000000d' | format(1) }}", "template"),
        ("a wide indent", "{{ 'a\na' | indent(1000000000) }}", "template"),
        ("a wide batch", "{{ [1] | batch(1000000000, 0) | list }}", "template"),
        ("an exception", "{{ raise_exception('not with me') }}", "not with me"),
        ("half a tag", "{% if", "template"),
    ] {
        let model = Model::sound();
        model.with("chat_template.jinja", template);
        answer(model.path()).assert_refused(case, &[word]);
    }
    let model = Model::sound();
    model.with("chat_template.jinja", "a".repeat(2 << 20));
    answer(model.path()).assert_refused("a template of 2 MiB", &["chat_template.jinja", "2097152"]);
}

#[test]
fn text_without_a_place_in_the_model() {
    let outcome = generate(changed("/model/unk_token", json!(null)).path());
    outcome.assert_contained("letters that are no tokens");
}
