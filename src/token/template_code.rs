//! From a chat template's source to instructions that cannot run away.
//!
//! `minijinja` counts steps and bytes, but not what an operation visits inside nested values: a list that
//! holds another twice, forty times over, is cheap to build and endless to print or compare. So each
//! instruction that looks into values is replaced by a call of the guarded operation of the same effect; see
//! [`crate::token::template_ops`].

use minijinja::machinery::{CodeGenerator, Instruction, Instructions, Token, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use std::collections::BTreeMap;

use crate::error::Result;
use crate::token::limits::{invalid, unsupported};
use crate::token::template_ops::{DEEP_FILTERS, DEEP_TESTS, SHALLOW_FILTERS, SHALLOW_TESTS, op};

/// Most tokens within one tag; the compiler recurses along chains of operators.
const NUM_TAG_TOKENS_MAX: usize = 4096;
/// Most `+` and `~` within one tag; folding a chain of constants takes quadratic time.
const NUM_TAG_JOINS_MAX: usize = 256;
/// Most `elif` in a template; the compiler recurses along them.
const NUM_ELIFS_MAX: usize = 1024;
/// Longest line; the crate counts columns in 16 bits.
const LINE_BYTES_MAX: usize = 65_000;
/// The template's name in error messages.
pub(crate) const NAME: &str = "chat_template";

/// Compiled instructions of a template and of its blocks.
pub(crate) struct Code<'source> {
    pub instructions: Instructions<'source>,
    pub blocks: BTreeMap<&'source str, Instructions<'source>>,
}

impl<'source> Code<'source> {
    /// Compiles `source`, which was read from `place`. Call it where the stack is deep.
    pub fn compile(place: &str, source: &'source str) -> Result<Self> {
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|error| invalid(place, error))?;
        check_tokens(place, source, &syntax)?;
        let statements = parse(source, NAME, syntax).map_err(|error| invalid(place, error))?;
        let mut generator = CodeGenerator::new(NAME, source);
        generator.compile_stmt(&statements);
        let (mut instructions, mut blocks) = generator.finish();
        for instructions in std::iter::once(&mut instructions).chain(blocks.values_mut()) {
            guard(place, instructions)?;
        }
        Ok(Self { instructions, blocks })
    }
}

/// Checks what the compiler's time and stack depend on.
fn check_tokens(place: &str, source: &str, syntax: &SyntaxConfig) -> Result<()> {
    if let Some(index) = source.split('\n').position(|line| line.len() > LINE_BYTES_MAX) {
        return Err(invalid(place, format!("line {}: more than {LINE_BYTES_MAX} bytes", index + 1)));
    }
    let (mut num_tokens, mut num_joins, mut num_elifs) = (0, 0, 0);
    for token in tokenize(source, false, syntax.clone()) {
        let (token, span) = token.map_err(|error| invalid(place, error))?;
        num_tokens += 1;
        match token {
            Token::VariableStart | Token::BlockStart => (num_tokens, num_joins) = (0, 0),
            Token::Plus | Token::Tilde => num_joins += 1,
            Token::Ident("elif") => num_elifs += 1,
            _ => {}
        }
        for (num, num_max, what) in [
            (num_tokens, NUM_TAG_TOKENS_MAX, "tokens in one tag"),
            (num_joins, NUM_TAG_JOINS_MAX, "of + and ~ in one tag"),
            (num_elifs, NUM_ELIFS_MAX, "of elif"),
        ] {
            if num > num_max {
                return Err(invalid(place, format!("line {}: more than {num_max} {what}", span.start_line)));
            }
        }
    }
    Ok(())
}

/// Replaces every instruction that looks into values.
fn guard(place: &str, instructions: &mut Instructions) -> Result<()> {
    let mut index = 0;
    while let Some(instruction) = instructions.get_mut(index) {
        if let Some(replacement) = replacement(place, instruction)? {
            *instruction = replacement;
        }
        index += 1;
    }
    Ok(())
}

fn replacement(place: &str, instruction: &Instruction) -> Result<Option<Instruction<'static>>> {
    let call = |name: &'static str, num_arguments: usize| {
        let problem = || unsupported(place, format!("a literal with {num_arguments} entries"));
        let num_arguments = u16::try_from(num_arguments).map_err(|_| problem())?;
        Ok(Some(Instruction::CallFunction(name, Some(num_arguments))))
    };
    match instruction {
        Instruction::StringConcat => call(op::CONCAT, 2),
        Instruction::Eq => call(op::EQ, 2),
        Instruction::Ne => call(op::NE, 2),
        Instruction::Lt => call(op::LT, 2),
        Instruction::Lte => call(op::LE, 2),
        Instruction::Gt => call(op::GT, 2),
        Instruction::Gte => call(op::GE, 2),
        Instruction::In => call(op::IN, 2),
        Instruction::GetItem => call(op::GET_ITEM, 2),
        Instruction::Slice => call(op::SLICE, 4),
        Instruction::Add => call(op::ADD, 2),
        Instruction::Mul => call(op::MUL, 2),
        Instruction::BuildMap(num_pairs) => call(op::DICT, num_pairs.saturating_mul(2)),
        Instruction::BuildList(num) => sequence(place, op::LIST, *num),
        Instruction::BuildTuple(num) => sequence(place, op::TUPLE, *num),
        Instruction::ApplyFilter(name, num_arguments, _) => {
            let guarded = guarded_name(&DEEP_FILTERS, name).or(guarded_name(&SHALLOW_FILTERS, name));
            let guarded = guarded.ok_or_else(|| unsupported(place, format!("filter {name:?}")))?;
            Ok(Some(Instruction::CallFunction(guarded, *num_arguments)))
        }
        Instruction::PerformTest(name, num_arguments, _) => match guarded_name(&DEEP_TESTS, name) {
            Some(guarded) => Ok(Some(Instruction::CallFunction(guarded, *num_arguments))),
            None if SHALLOW_TESTS.contains(name) => Ok(None),
            None => Err(unsupported(place, format!("test {name:?}"))),
        },
        Instruction::CallMethod("changed", num_arguments) => {
            Ok(Some(Instruction::CallFunction(op::CHANGED, *num_arguments)))
        }
        Instruction::CompareAndPreserve(_) => {
            Err(unsupported(place, "a chain of comparisons such as a < b < c"))
        }
        _ => Ok(None),
    }
}

fn sequence(place: &str, name: &'static str, num: Option<usize>) -> Result<Option<Instruction<'static>>> {
    let num = num.map(u16::try_from).transpose();
    let num = num.map_err(|_| unsupported(place, "a literal with more than 65535 entries"))?;
    Ok(Some(Instruction::CallFunction(name, num)))
}

/// The entry of `guarded` for `name`: the same after a prefix that no template can write.
fn guarded_name(guarded: &'static [&'static str], name: &str) -> Option<&'static str> {
    guarded.iter().copied().find(|guarded| &guarded[op::PREFIX_BYTES..] == name)
}
