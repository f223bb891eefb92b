//! Model directories that lie: safetensors files, shard indexes, `config.json`, and what is no model at all.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::tool::{Model, assert_refused, generate};

const FILE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const EMBEDDING: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";

/// Header and data of the sound file.
fn sound_file(model: &Model) -> (Value, Vec<u8>) {
    let file = std::fs::read(model.file(FILE)).unwrap();
    let (length, rest) = file.split_first_chunk().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    (serde_json::from_slice(header).unwrap(), data.to_vec())
}

fn build(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

#[test]
fn the_model_that_cases_are_made_from_is_sound() {
    let model = Model::sound();
    let outcome = generate(model.path());
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert!(!outcome.stdout.is_empty());
}

#[test]
fn files_whose_bytes_lie() {
    let (header, data) = sound_file(&Model::sound());
    let header = header.to_string();
    let nested = format!("{{\"x\":{}{}}}", "[".repeat(200_000), "]".repeat(200_000));
    let twice = header.replacen(
        '{',
        &format!("{{\"{NORM}\":{{\"dtype\":\"BF16\",\"shape\":[0],\"data_offsets\":[0,0]}},"),
        1,
    );
    let cases: [(&str, Vec<u8>, &str); 11] = [
        ("an empty file", vec![], "header length"),
        ("a length alone", 5u64.to_le_bytes().to_vec(), "header length"),
        ("a header of 2^63 bytes", [&(1u64 << 63).to_le_bytes(), &data[..]].concat(), "header length"),
        ("a header longer than the file", [&(1u64 << 20).to_le_bytes(), &data[..]].concat(), "header length"),
        ("a header that is no JSON", build("nonsense", &data), "header"),
        ("a header that is an array", build("[]", &data), "header"),
        ("a header that is not UTF-8", [&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat(), "header"),
        ("a header nested 200,000 deep", build(&nested, &data), "header"),
        ("a tensor twice", build(&twice, &data), "twice"),
        ("data cut short", build(&header, &data[..data.len() - 1]), "data_offsets"),
        ("data too long", build(&header, &[&data[..], &[0]].concat()), "data_offsets"),
    ];
    for (case, bytes, word) in cases {
        let model = Model::sound();
        model.with(FILE, bytes);
        assert_refused(case, model.path(), &[FILE, word]);
    }
}

#[test]
fn headers_that_lie() {
    type Edit = fn(&mut Value);
    let cases: [(&str, Edit, &str); 15] = [
        ("an offset as text", |h| h[NORM]["data_offsets"] = json!(["0", "8"]), "header"),
        ("offsets reversed", |h| h[NORM]["data_offsets"] = json!([8, 0]), NORM),
        ("offsets outside", |h| h[NORM]["data_offsets"] = json!([1u64 << 40, (1u64 << 40) + 72]), NORM),
        ("offsets near 2^64", |h| h[NORM]["data_offsets"] = json!([u64::MAX - 72, u64::MAX]), NORM),
        (
            "offsets that overlap",
            |h| h[NORM]["data_offsets"] = h["model.layers.0.input_layernorm.weight"]["data_offsets"].clone(),
            "starts at",
        ),
        ("a negative offset", |h| h[NORM]["data_offsets"] = json!([-8, 64]), "-8"),
        ("an unknown type", |h| h[NORM]["dtype"] = json!("F7"), "F7"),
        ("a type of another size", |h| h[NORM]["dtype"] = json!("F32"), NORM),
        ("a type that no weight has", |h| h[NORM]["dtype"] = json!("I16"), NORM),
        ("a shape that overflows", |h| h[NORM]["shape"] = json!([1u64 << 40, 1u64 << 40]), NORM),
        ("a shape of nine sizes", |h| h[NORM]["shape"] = json!([1, 1, 1, 1, 1, 1, 1, 1, 36]), "8"),
        ("a shape turned around", |h| h[EMBEDDING]["shape"] = json!([36, 89]), EMBEDDING),
        ("no shape", |h| drop(h[NORM].as_object_mut().unwrap().remove("shape")), "shape"),
        ("metadata that is no text", |h| h["__metadata__"] = json!({"a": [1]}), "text"),
        (
            "a name of another model",
            |h| {
                let entry = h.as_object_mut().unwrap().remove(NORM).unwrap();
                h["model.norm.\u{1b}[2Jweight"] = entry;
            },
            NORM,
        ),
    ];
    for (case, edit, word) in cases {
        let model = Model::sound();
        let (mut header, data) = sound_file(&model);
        edit(&mut header);
        model.with(FILE, build(&header.to_string(), &data));
        assert_refused(case, model.path(), &[model.path().to_str().unwrap(), word]);
    }
}

#[test]
fn tensors_that_no_layer_wants() {
    let model = Model::sound();
    let (mut header, mut data) = sound_file(&model);
    let end = data.len();
    header["extra.weight"] = json!({"dtype": "BF16", "shape": [1], "data_offsets": [end, end + 2]});
    data.extend([0, 0]);
    model.with(FILE, build(&header.to_string(), &data));
    assert_refused("a leftover tensor", model.path(), &["extra.weight"]);
}

/// A sound model whose file has become the shard `shard.safetensors`.
fn sharded(weight_map: impl Fn(&str) -> String) -> Model {
    let model = Model::sound();
    let (header, _) = sound_file(&model);
    std::fs::rename(model.file(FILE), model.file("shard.safetensors")).unwrap();
    let names = header.as_object().unwrap().keys().filter(|name| *name != "__metadata__");
    let map: Value = names.map(|name| (name.clone(), Value::from(weight_map(name)))).collect();
    model.with_json(INDEX, &json!({"metadata": {"total_size": 1}, "weight_map": map}));
    model
}

#[test]
fn shards_stay_in_the_directory() {
    let sound = sharded(|_| "shard.safetensors".to_owned());
    assert_eq!(generate(sound.path()).code, 0, "{}", generate(sound.path()).stderr);
    let outside = sharded(|_| "shard.safetensors".to_owned());
    let outside = outside.file("shard.safetensors");
    for (case, shard) in [
        ("a path upwards", "../shard.safetensors"),
        ("a path down and up", "x/../shard.safetensors"),
        ("an absolute path", outside.to_str().unwrap()),
        ("the directory", "."),
        ("no name", ""),
        ("a backslash", "..\\shard.safetensors"),
        ("a zero byte", "shard\0.safetensors"),
    ] {
        assert_refused(case, sharded(|_| shard.to_owned()).path(), &[INDEX, "weight_map"]);
    }
    let linked = sharded(|_| "link.safetensors".to_owned());
    symlink(&outside, linked.file("link.safetensors")).unwrap();
    assert_refused("a link that leads outside", linked.path(), &[INDEX, "weight_map"]);
    let missing = sharded(|_| "missing.safetensors".to_owned());
    assert_refused("a missing shard", missing.path(), &["missing.safetensors"]);
    let copied =
        sharded(|name| if name == NORM { "copy.safetensors" } else { "shard.safetensors" }.to_owned());
    std::fs::copy(copied.file("shard.safetensors"), copied.file("copy.safetensors")).unwrap();
    assert_refused("a shard that is there twice", copied.path(), &["safetensors", "too"]);
}

#[test]
fn indexes_that_lie() {
    let map = |entries: &str| format!("{{\"weight_map\": {{{entries}}}}}");
    for (case, index, word) in [
        ("no JSON", "]".to_owned(), "weight_map"),
        ("no map", "{}".to_owned(), "weight_map"),
        ("an empty map", map(""), "missing"),
        ("a number for a shard", map("\"a\": 1"), "weight_map"),
        ("a tensor twice", map("\"a\": \"shard.safetensors\", \"a\": \"shard.safetensors\""), "twice"),
        ("a tensor that is nowhere", map("\"a\": \"shard.safetensors\""), "weight_map.a"),
        ("two maps", "{\"weight_map\": {}, \"weight_map\": {}}".to_owned(), "weight_map"),
        (
            "200,000 shards",
            map(&(0..200_000).map(|i| format!("\"{i}\":\"s{i}\"")).collect::<Vec<_>>().join(",")),
            "s0",
        ),
    ] {
        let model = sharded(|_| "shard.safetensors".to_owned());
        model.with(INDEX, index);
        assert_refused(case, model.path(), &[word]);
    }
}

#[test]
fn every_size_in_a_config_may_lie() {
    let huge = json!(1u64 << 60);
    let bad = [
        json!(null),
        json!(0),
        json!(-1),
        json!(1.5),
        huge,
        json!(1e300),
        json!("36"),
        json!([36]),
        json!({}),
    ];
    // A head size that is absent is computed.
    let optional = ["head_dim", "num_key_value_heads"];
    for field in [
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "vocab_size",
        "head_dim",
        "num_key_value_heads",
    ] {
        for value in bad.iter().filter(|value| !(value.is_null() && optional.contains(&field))) {
            let model = Model::sound();
            let mut config = model.json("config.json");
            config[field] = value.clone();
            model.with_json("config.json", &config);
            let path = model.path().to_str().unwrap();
            generate(model.path()).assert_refused(&format!("{field}: {value}"), &[path]);
        }
    }
}

#[test]
fn configs_that_make_no_sense() {
    let rope = |fields: Value| json!({"rope_parameters": fields});
    for (case, change, word) in [
        ("no architecture", json!({"architectures": null, "model_type": null}), "architectures"),
        ("a novel architecture", json!({"architectures": ["XForCausalLM"]}), "XForCausalLM"),
        ("an architecture as a number", json!({"architectures": 7}), "architectures"),
        ("heads that do not divide", json!({"num_key_value_heads": 4}), "num_kv_heads"),
        ("more key-value heads than heads", json!({"num_key_value_heads": 12}), "num_kv_heads"),
        ("an odd head", json!({"head_dim": 9}), "9"),
        (
            "heads that do not divide the width",
            json!({"head_dim": null, "num_attention_heads": 7}),
            "num_attention_heads",
        ),
        ("4096 layers", json!({"num_hidden_layers": 4096}), "model.layers.2."),
        ("a vocabulary of 2^24", json!({"vocab_size": 1 << 24}), EMBEDDING),
        ("a width of 2^18", json!({"hidden_size": 1 << 18}), EMBEDDING),
        ("an epsilon of 0", json!({"rms_norm_eps": 0}), "rms_norm_eps"),
        ("an epsilon as text", json!({"rms_norm_eps": "x"}), "rms_norm_eps"),
        ("another activation", json!({"hidden_act": "swishy"}), "hidden_act"),
        ("a bias that is not there", json!({"attention_bias": true}), "q_proj.bias"),
        ("a quantised model", json!({"quantization_config": {}}), "quantization_config"),
        ("an untied head that is not there", json!({"tie_word_embeddings": false}), "lm_head.weight"),
        ("a base of 0", rope(json!({"rope_type": "default", "rope_theta": 0})), "theta"),
        ("a base of 1e300", rope(json!({"rope_type": "default", "rope_theta": 1e300})), "theta"),
        ("a novel scaling", rope(json!({"rope_type": "x"})), "rope_type"),
        ("a factor of 0", rope(json!({"rope_type": "linear", "factor": 0})), "factor"),
        ("a factor of 1e300", rope(json!({"rope_type": "linear", "factor": 1e300})), "positions"),
        ("no factor", rope(json!({"rope_type": "yarn"})), "factor"),
        ("parameters that are no object", json!({"rope_parameters": [1]}), "rope_parameters"),
    ] {
        let model = Model::sound();
        let mut config = model.json("config.json");
        for (field, value) in change.as_object().unwrap() {
            config[field] = value.clone();
        }
        model.with_json("config.json", &config);
        assert_refused(case, model.path(), &[model.path().to_str().unwrap(), word]);
    }
    for (case, text) in [("nothing", ""), ("an array", "[]"), ("half an object", "{\"hidden_size\": 36")] {
        let model = Model::sound();
        model.with("config.json", text);
        assert_refused(case, model.path(), &["config.json"]);
    }
    let model = Model::sound();
    model.with("config.json", format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000)));
    assert_refused("a config nested 100,000 deep", model.path(), &["config.json"]);
}

#[test]
fn what_is_no_model() {
    let empty = tempfile::tempdir().unwrap();
    assert_refused("an empty directory", empty.path(), &[empty.path().to_str().unwrap()]);
    for device in ["/dev/null", "/dev/zero", "/dev/urandom"] {
        assert_refused(device, Path::new(device), &[device, "not a regular file"]);
    }
    for file in ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl"] {
        let model = Model::sound();
        model.without(FILE);
        model.with(file, b"\x80\x04\x95");
        generate(model.path()).assert_refused(file, &[file, "pickle"]);
        generate(&model.file(file)).assert_refused(file, &[file, "pickle"]);
    }
    let model = Model::sound();
    model.without(FILE);
    generate(model.path()).assert_refused("no weights", &["model.safetensors"]);
}

#[test]
fn files_that_are_no_files() {
    for file in [
        "config.json",
        FILE,
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "chat_template.jinja",
    ] {
        let replaced = |case: &str, make: &dyn Fn(&Path)| {
            let model = Model::sound();
            let _ = std::fs::remove_file(model.file(file));
            make(&model.file(file));
            assert_refused(&format!("{file} is {case}"), model.path(), &[file, "not a regular file"]);
        };
        replaced("a directory", &|path| std::fs::create_dir(path).unwrap());
        replaced("a device", &|path| symlink("/dev/zero", path).unwrap());
        replaced("a pipe", &|path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success()));
    }
    let model = Model::sound();
    let file = std::fs::File::create(model.file("tokenizer.json")).unwrap();
    file.set_len(1 << 40).unwrap();
    generate(model.path()).assert_refused("a tokenizer of a terabyte", &["tokenizer.json", "1099511627776"]);
    let file = std::fs::File::create(model.file("config.json")).unwrap();
    file.set_len(1 << 40).unwrap();
    assert_refused("a config of a terabyte", model.path(), &["config.json", "1099511627776"]);
}
