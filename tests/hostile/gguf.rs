//! GGUF files that lie, made from a sound one.

use super::tool::{assert_refused, generate, golden};

/// A file's parts, to be changed and put together again.
#[derive(Clone)]
struct Gguf {
    num_tensors: Option<u64>,
    num_values: Option<u64>,
    values: Vec<(String, u32, Vec<u8>)>,
    tensors: Vec<Tensor>,
    data: Vec<u8>,
}

#[derive(Clone)]
struct Tensor {
    name: String,
    /// Innermost first.
    dims: Vec<u64>,
    type_id: u32,
    offset: u64,
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes.to_vec()
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes(8).try_into().unwrap())
    }

    fn text(&mut self) -> String {
        let length = self.u64() as usize;
        String::from_utf8(self.bytes(length)).unwrap()
    }
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn texts<'a>(items: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let items: Vec<Vec<u8>> = items.into_iter().map(text).collect();
    [&8u32.to_le_bytes()[..], &(items.len() as u64).to_le_bytes(), &items.concat()].concat()
}

impl Gguf {
    /// The tiny Llama of the golden files with a tokenizer of letters.
    fn sound() -> Self {
        let file = std::fs::read(golden("llama_tiny_gguf/model.gguf")).unwrap();
        let mut reader = Reader(&file[8..]);
        let (num_tensors, num_values) = (reader.u64(), reader.u64());
        let value = |reader: &mut Reader| {
            let (key, kind) = (reader.text(), reader.u32());
            let bytes = if kind == 8 { text(&reader.text()) } else { reader.bytes(4) };
            (key, kind, bytes)
        };
        let values = (0..num_values).map(|_| value(&mut reader)).collect();
        let tensor = |reader: &mut Reader| Tensor {
            name: reader.text(),
            dims: (0..reader.u32()).map(|_| reader.u64()).collect(),
            type_id: reader.u32(),
            offset: reader.u64(),
        };
        let tensors = (0..num_tensors).map(|_| tensor(&mut reader)).collect();
        let data_start = (file.len() - reader.0.len()).next_multiple_of(32);
        let data = file[data_start..].to_vec();
        let mut gguf = Self { num_tensors: None, num_values: None, values, tensors, data };
        let letters: Vec<String> = ('a'..='z').map(String::from).collect();
        let tokens = letters.iter().map(String::as_str).chain(["ab", "</s>"]);
        gguf.set("tokenizer.ggml.model", 8, text("gpt2"));
        gguf.set("tokenizer.ggml.tokens", 9, texts(tokens));
        gguf.set("tokenizer.ggml.merges", 9, texts(["a b"]));
        gguf.set("tokenizer.ggml.eos_token_id", 4, 27u32.to_le_bytes());
        gguf
    }

    fn set(&mut self, key: &str, kind: u32, bytes: impl AsRef<[u8]>) {
        self.values.retain(|(other, ..)| other != key);
        self.values.push((key.to_owned(), kind, bytes.as_ref().to_vec()));
    }

    fn set_u32(&mut self, key: &str, value: u32) {
        self.set(key, 4, value.to_le_bytes());
    }

    fn set_u64(&mut self, key: &str, value: u64) {
        self.set(key, 10, value.to_le_bytes());
    }

    fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }

    /// The file, and where its parts end.
    fn build(&self) -> (Vec<u8>, Vec<usize>) {
        let mut file = [b"GGUF", &3u32.to_le_bytes()[..]].concat();
        let mut ends = vec![4, 8, 16, 24];
        file.extend(self.num_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        file.extend(self.num_values.unwrap_or(self.values.len() as u64).to_le_bytes());
        for (key, kind, bytes) in &self.values {
            for part in [&text(key), &kind.to_le_bytes()[..], bytes] {
                file.extend(part);
                ends.push(file.len());
            }
        }
        for Tensor { name, dims, type_id, offset } in &self.tensors {
            file.extend(text(name));
            ends.push(file.len());
            file.extend((dims.len() as u32).to_le_bytes());
            file.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
            ends.push(file.len());
            file.extend(type_id.to_le_bytes());
            file.extend(offset.to_le_bytes());
            ends.push(file.len());
        }
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(&self.data);
        (file, ends)
    }
}

fn check(case: &str, bytes: &[u8], words: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    assert_refused(case, &path, &[&["model.gguf"], words].concat());
}

#[test]
fn the_file_that_cases_are_made_from_is_sound() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    std::fs::write(&path, Gguf::sound().build().0).unwrap();
    let outcome = generate(&path);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert!(!outcome.stdout.is_empty());
}

#[test]
fn truncated_files() {
    let (file, ends) = Gguf::sound().build();
    // Before and at the ends of parts; every ninth, as the same code reads all keys and tensors.
    let cuts = ends.iter().enumerate().filter(|(index, _)| *index < 8 || index % 9 == 0).map(|(_, end)| *end);
    for cut in cuts.flat_map(|end| [end - 1, end]).chain([0, file.len() - 200]) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.gguf");
        std::fs::write(&path, &file[..cut]).unwrap();
        generate(&path).assert_refused(&format!("cut at byte {cut}"), &["model.gguf: "]);
    }
}

type Edit = fn(&mut Gguf);

#[test]
fn counts_and_sizes_that_lie() {
    let cases: [(&str, Edit, &[&str]); 19] = [
        ("2^60 tensors", |g| g.num_tensors = Some(1 << 60), &["tensor count"]),
        ("2^64 - 1 tensors", |g| g.num_tensors = Some(u64::MAX), &["tensor count"]),
        ("2^60 values", |g| g.num_values = Some(1 << 60), &["metadata count"]),
        ("a key of 2^63 bytes", |g| g.set("x", 8, (1u64 << 63).to_le_bytes()), &["x: "]),
        ("a text of 2^63 bytes", |g| g.set("x", 8, (1u64 << 63).to_le_bytes()), &["x: "]),
        (
            "an array of 2^62 numbers",
            |g| g.set("x", 9, [&4u32.to_le_bytes()[..], &(1u64 << 62).to_le_bytes()].concat()),
            &["x: "],
        ),
        (
            "an array of arrays",
            |g| g.set("x", 9, [&9u32.to_le_bytes()[..], &1u64.to_le_bytes(), &[9, 0, 0, 0]].concat()),
            &["x: ", "array of arrays"],
        ),
        ("an unknown type", |g| g.set("x", 99, []), &["x: ", "99"]),
        (
            "sizes whose product overflows",
            |g| g.tensor("token_embd.weight").dims = vec![1 << 40, 1 << 40],
            &["token_embd.weight", "overflows"],
        ),
        ("a size of 0", |g| g.tensor("token_embd.weight").dims[0] = 0, &["token_embd.weight"]),
        ("five dimensions", |g| g.tensor("token_embd.weight").dims = vec![1; 5], &["token_embd.weight", "5"]),
        (
            "an unknown tensor type",
            |g| g.tensor("token_embd.weight").type_id = 77,
            &["token_embd.weight", "77"],
        ),
        (
            "tensors that overlap",
            |g| g.tensor("blk.0.attn_k.weight").offset = g.tensor("blk.0.attn_q.weight").offset,
            &["attn_", "overlap"],
        ),
        (
            "a tensor outside",
            |g| g.tensor("output_norm.weight").offset = 1 << 40,
            &["output_norm", "outside"],
        ),
        ("an offset near 2^64", |g| g.tensor("output_norm.weight").offset = u64::MAX - 31, &["output_norm"]),
        ("an odd offset", |g| g.tensor("output_norm.weight").offset += 4, &["output_norm", "aligned"]),
        ("an alignment of 0", |g| g.set_u32("general.alignment", 0), &["general.alignment"]),
        ("an alignment of 33", |g| g.set_u32("general.alignment", 33), &["general.alignment"]),
        ("an alignment of 2^63", |g| g.set_u64("general.alignment", 1 << 63), &["tensor"]),
    ];
    run(&cases);
}

#[test]
fn names_that_clash_and_models_that_make_no_sense() {
    let cases: [(&str, Edit, &[&str]); 20] = [
        ("a key twice", |g| g.values.push(g.values[1].clone()), &["twice"]),
        (
            "a tensor twice",
            |g| g.tensor("blk.0.attn_k.weight").name = "blk.0.attn_v.weight".into(),
            &["blk.0.attn_v.weight"],
        ),
        ("a missing tensor", |g| drop(g.tensors.remove(3)), &["is missing"]),
        ("a leftover tensor", |g| g.tensor("rope_freqs.weight").name = "x".into(), &["\"x\""]),
        (
            "a wrong shape",
            |g| g.tensor("blk.0.attn_k.weight").dims = vec![20, 36],
            &["blk.0.attn_k.weight", "shape"],
        ),
        ("a long name", |g| g.tensor("rope_freqs.weight").name = "x".repeat(70_000), &["70000"]),
        (
            "no architecture",
            |g| g.values.retain(|(key, ..)| key != "general.architecture"),
            &["general.architecture"],
        ),
        ("a novel architecture", |g| g.set("general.architecture", 8, text("x\u{1b}[2J")), &["architecture"]),
        ("a count as text", |g| g.set("llama.block_count", 8, text("2")), &["llama.block_count"]),
        (
            "a negative count",
            |g| g.set("llama.block_count", 5, (-1i32).to_le_bytes()),
            &["llama.block_count"],
        ),
        ("2^60 layers", |g| g.set_u64("llama.block_count", 1 << 60), &["layers"]),
        ("4096 layers", |g| g.set_u32("llama.block_count", 4096), &["blk.2."]),
        ("no heads", |g| g.set_u32("llama.attention.head_count", 0), &["heads"]),
        ("no key-value heads", |g| g.set_u32("llama.attention.head_count_kv", 0), &["kv_heads"]),
        ("heads that do not divide", |g| g.set_u32("llama.attention.head_count_kv", 4), &["kv_heads"]),
        ("a context of 2^40", |g| g.set_u64("llama.context_length", 1 << 40), &["positions"]),
        ("a width of 2^63", |g| g.set_u64("llama.embedding_length", 1 << 63), &["hidden_size"]),
        (
            "a base that is no number",
            |g| g.set("llama.rope.freq_base", 6, f32::NAN.to_le_bytes()),
            &["theta"],
        ),
        (
            "an epsilon below 0",
            |g| g.set("llama.attention.layer_norm_rms_epsilon", 6, (-1f32).to_le_bytes()),
            &["epsilon"],
        ),
        (
            "factors that are no numbers",
            |g| {
                let start = g.tensor("rope_freqs.weight").offset as usize;
                g.data[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
            },
            &["factors"],
        ),
    ];
    run(&cases);
}

#[test]
fn tokenizers_in_metadata() {
    const TOKENS: &str = "tokenizer.ggml.tokens";
    const MERGES: &str = "tokenizer.ggml.merges";
    let cases: [(&str, Edit, &[&str]); 12] = [
        ("no tokens", |g| g.set(TOKENS, 9, texts([])), &[TOKENS]),
        ("tokens that are numbers", |g| g.set(TOKENS, 9, [4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), &[TOKENS]),
        ("one token as text", |g| g.set(TOKENS, 8, text("a")), &[TOKENS]),
        ("no model", |g| g.set("tokenizer.ggml.model", 8, text("")), &["tokenizer.ggml.model"]),
        ("a novel model", |g| g.set("tokenizer.ggml.model", 8, text("bert")), &["tokenizer.ggml.model"]),
        ("a merge of unknown tokens", |g| g.set(MERGES, 9, texts(["a b", "Z Y"])), &["merges"]),
        ("a merge into no token", |g| g.set(MERGES, 9, texts(["y z"])), &["merges"]),
        ("a merge of one token", |g| g.set(MERGES, 9, texts(["ab"])), &["merges"]),
        (
            "a merge longer than every token",
            |g| g.set(MERGES, 9, texts([format!("a {}", "b".repeat(8000)).as_str()])),
            &["merges"],
        ),
        ("a token of 9 KB", |g| g.set(TOKENS, 9, texts(["a", &"b".repeat(9000)])), &[TOKENS]),
        ("an end outside", |g| g.set_u32("tokenizer.ggml.eos_token_id", 28), &["eos_token_id"]),
        (
            "more tokens than rows",
            |g| {
                let tokens: Vec<String> = (0..90).map(|index| format!("t{index}")).collect();
                g.set(TOKENS, 9, texts(tokens.iter().map(String::as_str)));
                g.set(MERGES, 9, texts([]));
            },
            &["90 tokens"],
        ),
    ];
    run(&cases);
}

fn run(cases: &[(&str, Edit, &[&str])]) {
    for (case, edit, words) in cases {
        let mut gguf = Gguf::sound();
        edit(&mut gguf);
        check(case, &gguf.build().0, words);
    }
}
