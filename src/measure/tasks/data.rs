//! Questions out of files:
//!
//! - `.txt`: HellaSwag as llama-perplexity reads it, six lines a task: context, index of the right
//!   ending, four endings.
//! - `.bin`: multiple choice as llama-perplexity reads it.
//! - `.jsonl`, `.json`: objects with `query`, `choices` and `gold`; HellaSwag's own
//!   (`activity_label`, `ctx_a`, `ctx_b`, `endings`, `label`); ARC's own and that of the hub
//!   (`question`, `choices`, `answerKey`). Texts are prepared as lm-evaluation-harness does.

use std::path::Path;

use serde_json::Value;

use super::choices::Question;
use crate::base::{input, json as json_file};
use crate::{Error, Result};

/// Choices that a question may have.
const MOST_CHOICES: u32 = 64;

/// Reads all questions of a file.
///
/// # Errors
/// [`Error::Calibration`] naming the file and the line or question that cannot be understood.
pub fn read(path: &Path) -> Result<Vec<Question>> {
    let refuse = |what: String| Error::Calibration(format!("{}: {what}", path.display()));
    let bytes = input::read(path, input::MAX_DATA).map_err(|error| refuse(error.to_string()))?;
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_lowercase();
    let questions = if extension == "bin" {
        binary(&bytes)
    } else {
        let text = std::str::from_utf8(&bytes).map_err(|_| refuse("not UTF-8".into()))?;
        match extension.as_str() {
            "json" => json(text),
            "jsonl" | "ndjson" => json_lines(text),
            "txt" => six_lines(text),
            other => Err(format!("`.{other}` is not .jsonl, .json, .bin or .txt")),
        }
    };
    let questions = questions.map_err(refuse)?;
    if questions.is_empty() {
        return Err(refuse("no questions".into()));
    }
    for (index, question) in questions.iter().enumerate() {
        if question.choices.len() < 2 || question.gold >= question.choices.len() {
            return Err(refuse(format!(
                "question {}: choice {} of {} is said to be right",
                index + 1,
                question.gold,
                question.choices.len()
            )));
        }
        if question.context.trim().is_empty() || question.choices.iter().any(String::is_empty) {
            return Err(refuse(format!("question {}: empty text", index + 1)));
        }
    }
    Ok(questions)
}

fn six_lines(text: &str) -> Result<Vec<Question>, String> {
    let lines: Vec<&str> = text.lines().collect();
    let used = lines.iter().rposition(|line| !line.trim().is_empty()).map_or(0, |last| last + 1);
    let lines = &lines[..used];
    if !lines.len().is_multiple_of(6) {
        return Err(format!("{} lines are not six a task", lines.len()));
    }
    lines
        .chunks_exact(6)
        .enumerate()
        .map(|(index, task)| {
            let gold = task[1].trim().parse().map_err(|_| {
                format!("line {}: {:?} is not the index of an ending", index * 6 + 2, task[1])
            })?;
            let choices = task[2..].iter().map(|&ending| ending.to_owned()).collect();
            Ok(Question { context: task[0].to_owned(), choices, gold })
        })
        .collect()
}

fn json_lines(text: &str) -> Result<Vec<Question>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, line)| {
            let value: Value =
                json_file::read(line).map_err(|error| format!("line {}: {error}", index + 1))?;
            question(&value).ok_or_else(|| format!("line {}: no question is found", index + 1))
        })
        .collect()
}

fn json(text: &str) -> Result<Vec<Question>, String> {
    let value: Value = json_file::read(text).map_err(|error| error.to_string())?;
    let list = value.as_array().ok_or("not a list of questions")?;
    list.iter()
        .enumerate()
        .map(|(index, value)| {
            question(value).ok_or_else(|| format!("entry {}: no question is found", index + 1))
        })
        .collect()
}

fn question(value: &Value) -> Option<Question> {
    let text = |name: &str| value.get(name)?.as_str();
    if let Some(endings) = value.get("endings") {
        return hellaswag(value, &strings(endings)?);
    }
    if let Some(query) = text("query") {
        let gold = usize::try_from(value.get("gold")?.as_u64()?).ok()?;
        return Some(Question {
            context: with_answer(query),
            choices: strings(value.get("choices")?)?,
            gold,
        });
    }
    let asked = value.get("question")?;
    let (stem, choices) = match asked.get("stem") {
        Some(stem) => (stem.as_str()?, asked.get("choices")?),
        None => (asked.as_str()?, value.get("choices")?),
    };
    let (choices, labels) = match choices.as_array() {
        Some(list) => {
            let all = |name: &str| -> Option<Vec<String>> {
                list.iter().map(|c| Some(c.get(name)?.as_str()?.to_owned())).collect()
            };
            (all("text")?, all("label")?)
        }
        None => (strings(choices.get("text")?)?, strings(choices.get("label")?)?),
    };
    let key = text("answerKey")?;
    let gold = labels.iter().position(|label| label == key)?;
    Some(Question { context: format!("Question: {stem}\nAnswer:"), choices, gold })
}

/// A context that asks a question ends with the word after which an answer follows.
fn with_answer(query: &str) -> String {
    let query = query.trim_end();
    if query.starts_with("Question:") && !query.ends_with("Answer:") {
        format!("{query}\nAnswer:")
    } else {
        query.to_owned()
    }
}

fn hellaswag(value: &Value, endings: &[String]) -> Option<Question> {
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    let label = value.get("label")?;
    let gold = match label.as_u64() {
        Some(index) => usize::try_from(index).ok()?,
        None => label.as_str()?.trim().parse().ok()?,
    };
    let context = match (text("ctx_a"), text("ctx_b")) {
        (Some(first), Some(second)) => format!("{first} {}", capitalized(second)),
        _ => text("ctx")?.to_owned(),
    };
    let activity = text("activity_label")?;
    Some(Question {
        context: without_artefacts(&format!("{activity}: {context}")),
        choices: endings.iter().map(|ending| without_artefacts(ending)).collect(),
        gold,
    })
}

/// First letter large, all others small (Python's `capitalize`).
fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    match characters.next() {
        Some(first) => {
            first.to_uppercase().collect::<String>() + &characters.as_str().to_lowercase()
        }
        None => String::new(),
    }
}

/// Leaves out what WikiHow's part of the data has in brackets.
fn without_artefacts(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        // A bracket that is closed on the same line.
        match rest[open..].find(']').filter(|close| !rest[open..open + close].contains('\n')) {
            Some(close) => {
                out.push_str(&rest[..open]);
                rest = &rest[open + close + 1..];
            }
            None => break,
        }
    }
    out.push_str(rest);
    out.replace("  ", " ")
}

fn strings(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|text| Some(text.as_str()?.to_owned())).collect()
}

/// The number of tasks, the offset of each, then per task the question and two lists of answers
/// (with one and with several right ones): their number, texts, and a label each. Numbers are u32,
/// texts have their length in front.
fn binary(bytes: &[u8]) -> Result<Vec<Question>, String> {
    let mut cursor = Cursor { bytes, at: 0 };
    let count = cursor.number()?;
    let offsets = (count as usize).checked_mul(4).ok_or("too many tasks")?;
    cursor.take(offsets)?;
    let mut questions = Vec::new();
    for index in 1..=count {
        let context = cursor.text()?;
        let (choices, labels) = cursor.answers()?;
        cursor.answers()?;
        let gold = labels
            .iter()
            .position(|&label| label == 1)
            .ok_or_else(|| format!("question {index} has no right answer"))?;
        questions.push(Question { context, choices, gold });
    }
    Ok(questions)
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn take(&mut self, length: usize) -> Result<&[u8], String> {
        let end = self.at.checked_add(length).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| format!("the file ends early (byte {})", self.at))?;
        let bytes = &self.bytes[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn number(&mut self) -> Result<u32, String> {
        let bytes = self.take(4)?;
        Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u32::from(byte)))
    }

    fn text(&mut self) -> Result<String, String> {
        let length = self.number()? as usize;
        let bytes = self.take(length)?.to_vec();
        String::from_utf8(bytes).map_err(|_| "a text is not UTF-8".to_owned())
    }

    fn answers(&mut self) -> Result<(Vec<String>, Vec<u32>), String> {
        let count = self.number()?;
        if count > MOST_CHOICES {
            return Err(format!("{count} answers to a question"));
        }
        let texts = (0..count).map(|_| self.text()).collect::<Result<_, _>>()?;
        let labels = (0..count).map(|_| self.number()).collect::<Result<_, _>>()?;
        Ok((texts, labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_as(name: &str, bytes: &[u8]) -> Result<Vec<Question>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        read(&path)
    }

    fn expect(context: &str, choices: &[&str], gold: usize) -> Question {
        Question {
            context: context.into(),
            choices: choices.iter().map(|&choice| choice.into()).collect(),
            gold,
        }
    }

    #[test]
    fn six_lines_are_a_task() {
        let text =
            "Roof: A man sits. he\n2\nsleeps.\njumps.\nworks.\nsings.\nB: Two\n0\na\nb\nc\nd\n\n";
        let questions = read_as("h.txt", text.as_bytes()).unwrap();
        assert_eq!(
            questions,
            [
                expect("Roof: A man sits. he", &["sleeps.", "jumps.", "works.", "sings."], 2),
                expect("B: Two", &["a", "b", "c", "d"], 0),
            ]
        );
        for (bad, what) in [
            ("a\n0\nb\nc\nd", "six a task"),
            ("a\nx\nb\nc\nd\ne", "line 2"),
            ("a\n4\nb\nc\nd\ne", "question 1"),
            ("a\n1\nb\n\nd\ne", "empty text"),
            ("", "no questions"),
        ] {
            let error = read_as("h.txt", bad.as_bytes()).unwrap_err();
            assert!(error.exit_code() == 15 && error.to_string().contains(what), "{error}");
        }
    }

    /// The expected texts are what lm-evaluation-harness makes of these records.
    #[test]
    fn records_of_every_publisher_are_understood() {
        let lines = [
            r#"{"ind":4,"activity_label":"Baking","ctx_a":"[header] How to [title] Mix","ctx_b":"the COOK","ctx":"x","endings":["a [step] b  c","d"],"label":"1"}"#,
            r#"{"query":"Question: Why?","choices":["no","yes"],"gold":1}"#,
            r#"{"query":"A man","choices":["no","yes"],"gold":0}"#,
            r#"{"id":"M1","question":"What?","choices":{"text":["one","two","three"],"label":["A","B","C"]},"answerKey":"C"}"#,
            r#"{"id":"M2","question":{"stem":"Who?","choices":[{"text":"he","label":"1"},{"text":"she","label":"2"}]},"answerKey":"2"}"#,
        ];
        let expected = [
            expect("Baking:  How to. Mix The cook", &["a b c", "d"], 1),
            expect("Question: Why?\nAnswer:", &["no", "yes"], 1),
            expect("A man", &["no", "yes"], 0),
            expect("Question: What?\nAnswer:", &["one", "two", "three"], 2),
            expect("Question: Who?\nAnswer:", &["he", "she"], 1),
        ];
        let questions = read_as("q.jsonl", lines.join("\n").as_bytes()).unwrap();
        // Two spaces where a bracket was become one.
        let mut first = expected[0].clone();
        first.context = "Baking: How to. Mix The cook".into();
        assert_eq!(questions[0], first);
        assert_eq!(questions[1..], expected[1..]);
        let list = format!("[{}]", lines.join(","));
        assert_eq!(read_as("q.json", list.as_bytes()).unwrap(), questions);
        let error = read_as("q.jsonl", b"{\"text\": \"no question\"}").unwrap_err();
        assert!(error.to_string().contains("line 1"), "{error}");
        assert!(read_as("q.parquet", b"PAR1").is_err());
    }

    #[test]
    fn the_binary_form_is_that_of_llama_perplexity() {
        let text = |text: &str| [&(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
        let mut bytes = 1u32.to_le_bytes().to_vec();
        bytes.extend(8u32.to_le_bytes());
        bytes.extend(text("Question: Why? Answer:"));
        bytes.extend(3u32.to_le_bytes());
        for answer in ["sun", "é", "sea"] {
            bytes.extend(text(answer));
        }
        for label in [0u32, 1, 0] {
            bytes.extend(label.to_le_bytes());
        }
        bytes.extend(0u32.to_le_bytes());
        let questions = read_as("arc.bin", &bytes).unwrap();
        assert_eq!(questions, [expect("Question: Why? Answer:", &["sun", "é", "sea"], 1)]);
        for length in 0..bytes.len() {
            assert!(read_as("arc.bin", &bytes[..length]).is_err(), "{length}");
        }
        let huge = [u32::MAX.to_le_bytes(), [0; 4]].concat();
        assert!(read_as("arc.bin", &huge).is_err());
    }
}
