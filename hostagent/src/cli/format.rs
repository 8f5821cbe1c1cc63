//! In which form a command prints what it has to say.

use std::fmt;
use std::io::IsTerminal;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context;
use gotmpl::{MissingKey, TemplateError};
use serde::Serialize;
use serde_json::Value;

use super::output::{columns, one_line, print, print_json};

/// What `--help` says of `--format`.
pub const FORMAT_HELP: &str = "How to print: table, json (one document a line), or a template \
     of these documents as Docker takes them, such as '{{.ID}}'";

/// `table`, `json`, `TEMPLATE` or `table TEMPLATE`, where a template is one of Go's
/// `text/template` with Docker's functions `json`, `join`, `split`, `lower`, `upper`,
/// `title` and `truncate`.
#[derive(Debug, Clone)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Documents(DocumentFormat),
}

/// A form in which every document is printed by itself.
#[derive(Debug, Clone)]
pub enum DocumentFormat {
    /// As JSON, one document a line.
    Json,
    /// By a template, each followed by a line feed.
    Template(Template),
    /// By a template, its tabs made columns, under headings.
    Columns(Template),
}

/// A template, parsed.
#[derive(Clone)]
pub struct Template {
    documents: Arc<gotmpl::Template>,
    /// The same with functions that give back what they are given, for a line of headings.
    headings: Arc<gotmpl::Template>,
}

/// Functions that make something else of a field, whose heading stays what it is.
const KEEP_HEADINGS: [&str; 10] = [
    "json", "join", "split", "lower", "upper", "title", "truncate", "len", "index", "slice",
];

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Template")
    }
}

impl Format {
    /// Whether it is for people.
    pub fn is_table(&self) -> bool {
        matches!(self, Self::Table)
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text.trim() {
            "table" => Self::Table,
            "json" => Self::Documents(DocumentFormat::Json),
            text => Self::Documents(match text.strip_prefix("table ") {
                Some(template) => DocumentFormat::Columns(template.trim().parse()?),
                None => DocumentFormat::Template(text.parse()?),
            }),
        })
    }
}

impl DocumentFormat {
    /// Prints one document.
    pub fn print(&self, document: &impl Serialize) -> anyhow::Result<()> {
        match self {
            Self::Json => print_json(document),
            Self::Template(template) => print(&format!("{}\n", template.fill(as_json(document)?)?)),
            Self::Columns(template) => print(&template.columns(&[as_json(document)?])?),
        }
    }

    /// Prints documents of one kind.
    pub fn print_all(
        &self,
        documents: impl IntoIterator<Item = impl Serialize>,
    ) -> anyhow::Result<()> {
        let mut documents = documents.into_iter();
        let Self::Columns(template) = self else {
            return documents.try_for_each(|document| self.print(&document));
        };
        let documents = documents.map(|document| as_json(&document));
        let documents: Vec<Value> = documents.collect::<anyhow::Result<_>>()?;
        print(&template.columns(&documents)?)
    }
}

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A template without an action says the same of every document: a word mistyped.
        if !text.contains("{{") {
            return Err("it is neither table, nor json, nor a template with {{…}}".to_owned());
        }
        let template = gotmpl::Template::new("")
            // As Go has it of a map: `<no value>`. Of some documents not all have all fields.
            .missing_key(MissingKey::Invalid)
            .func("json", |given| {
                let text = serde_json::to_string(&from_template(argument(given, 0)?));
                text.map(Into::into)
                    .map_err(|error| failed(error.to_string()))
            })
            .func("join", |given| {
                let gotmpl::Value::List(items) = argument(given, 0)? else {
                    return Err(failed("join is for a list".to_owned()));
                };
                let items: Vec<String> = items.iter().map(|item| item.to_string()).collect();
                Ok(items.join(&argument(given, 1)?.to_string()).into())
            })
            .func("split", |given| {
                let (text, separator) = (argument(given, 0)?, argument(given, 1)?);
                let (text, separator) = (text.to_string(), separator.to_string());
                let parts = text.split(&separator).map(gotmpl::Value::from);
                Ok(parts.collect::<Vec<_>>().into())
            })
            .func("lower", |given| {
                Ok(argument(given, 0)?.to_string().to_lowercase().into())
            })
            .func("upper", |given| {
                Ok(argument(given, 0)?.to_string().to_uppercase().into())
            })
            .func("title", |given| {
                let text = argument(given, 0)?.to_string();
                let mut begins = true;
                let titled = text.chars().map(|c| {
                    let titled = if begins { c.to_ascii_uppercase() } else { c };
                    begins = c.is_whitespace();
                    titled
                });
                Ok(titled.collect::<String>().into())
            })
            .func("truncate", |given| {
                let length = argument(given, 1)?.to_string();
                let length = length
                    .parse()
                    .map_err(|_| failed(format!("truncate takes a length, not {length:?}")))?;
                let text = argument(given, 0)?.to_string();
                Ok(text.chars().take(length).collect::<String>().into())
            })
            .parse(&unescaped(text))
            .map_err(|error| error.to_string())?;
        let mut headings = gotmpl::Template::new("");
        for name in KEEP_HEADINGS {
            headings = headings.func(name, |given| Ok(argument(given, 0)?.clone()));
        }
        let headings = headings
            .parse(&unescaped(text))
            .map_err(|error| error.to_string())?;
        Ok(Self {
            documents: Arc::new(template),
            headings: Arc::new(headings),
        })
    }
}

impl Template {
    /// The text it makes of a document. For a terminal, without what one would obey:
    /// images and users chose some of the words.
    fn fill(&self, mut document: Value) -> anyhow::Result<String> {
        if std::io::stdout().is_terminal() {
            clean(&mut document);
        }
        let document = gotmpl::to_value(&document).context("cannot fill in the template")?;
        let text = self.documents.execute_to_string(&document);
        text.context("cannot fill in the template; --format json shows what there is")
    }

    /// The lines it makes of documents, their tabs made columns, under headings. Nothing of
    /// no documents: the headings are the names of a document's fields.
    fn columns(&self, documents: &[Value]) -> anyhow::Result<String> {
        let headings = documents.first().and_then(|document| {
            // What no heading can be made for has none.
            let fields = gotmpl::to_value(&headings(document)).ok()?;
            self.headings.execute_to_string(&fields).ok()
        });
        let mut rows: Vec<Vec<String>> = headings.iter().map(|line| cells(line)).collect();
        for document in documents {
            rows.push(cells(&self.fill(document.clone())?));
        }
        Ok(columns(&rows))
    }
}

fn as_json(document: &impl Serialize) -> anyhow::Result<Value> {
    serde_json::to_value(document).context("cannot write JSON")
}

fn cells(line: &str) -> Vec<String> {
    line.split('\t').map(str::to_owned).collect()
}

/// The document with the headings of its fields for their values: `CREATED AT` for
/// `CreatedAt`, `SIZE BYTES` for `size_bytes`.
fn headings(document: &Value) -> Value {
    let fields = document.as_object().into_iter().flatten();
    fields
        .map(|(name, _)| {
            let mut heading = String::new();
            let mut before = '_';
            for c in name.chars() {
                if c == '_' || (c.is_uppercase() && before.is_lowercase()) {
                    heading.push(' ');
                }
                if c != '_' {
                    heading.extend(c.to_uppercase());
                }
                before = c;
            }
            (name.clone(), Value::from(heading))
        })
        .collect()
}

/// `\t` and `\n` are written so between the quotes of a shell; not within actions, where
/// Go's own rules hold.
fn unescaped(template: &str) -> String {
    let mut text = String::new();
    let mut rest = template;
    while let Some(start) = rest.find("{{") {
        let end = rest[start..].find("}}");
        let end = end.map_or(rest.len(), |length| start + length);
        let (before, action) = (&rest[..start], &rest[start..end]);
        text.push_str(&before.replace("\\t", "\t").replace("\\n", "\n"));
        text.push_str(action);
        rest = &rest[end..];
    }
    text.push_str(&rest.replace("\\t", "\t").replace("\\n", "\n"));
    text
}

/// All of a text that a terminal does not obey.
fn visible(text: &str) -> String {
    // In pieces: one line for a person has an end.
    let chars: Vec<char> = text.chars().collect();
    let pieces = chars
        .chunks(256)
        .map(|piece| one_line(&String::from_iter(piece)));
    pieces.collect()
}

fn clean(value: &mut Value) {
    match value {
        Value::String(text) => *text = visible(text),
        Value::Array(items) => items.iter_mut().for_each(clean),
        Value::Object(fields) => {
            let all = std::mem::take(fields).into_iter();
            *fields = all.map(|(name, value)| (visible(&name), value)).collect();
            fields.values_mut().for_each(clean);
        }
        _ => {}
    }
}

fn from_template(value: &gotmpl::Value) -> Value {
    match value {
        gotmpl::Value::Bool(value) => (*value).into(),
        gotmpl::Value::Int(value) => (*value).into(),
        gotmpl::Value::Uint(value) => (*value).into(),
        gotmpl::Value::Float(value) => (*value).into(),
        gotmpl::Value::String(text) => (**text).into(),
        gotmpl::Value::List(items) => items.iter().map(from_template).collect(),
        gotmpl::Value::Map(fields) => {
            let fields = fields.iter();
            fields
                .map(|(name, value)| (name.to_string(), from_template(value)))
                .collect()
        }
        _ => Value::Null,
    }
}

fn argument(given: &[gotmpl::Value], index: usize) -> Result<&gotmpl::Value, TemplateError> {
    given
        .get(index)
        .ok_or_else(|| failed(format!("argument {} is missing", index + 1)))
}

fn failed(message: String) -> TemplateError {
    TemplateError::Exec(message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn filled(template: &str, document: Value) -> String {
        let template: Template = template.parse().unwrap();
        template.fill(document).unwrap()
    }

    #[test]
    fn a_template_has_fields_and_dockers_functions() {
        let document = json!({
            "ID": "sha256:4f1a",
            "Size": 18_446_744_073_709_551_615u64,
            "Config": {"Env": ["A=1", "B=2"], "Cmd": null},
            "Tags": ["demo:v1", "demo:v2"],
        });
        for (template, text) in [
            ("{{.ID}}", "sha256:4f1a"),
            ("{{ .ID }}\\t{{.Size}}", "sha256:4f1a\t18446744073709551615"),
            ("{{json .Config}}", r#"{"Cmd":null,"Env":["A=1","B=2"]}"#),
            ("{{join .Tags \", \"}}", "demo:v1, demo:v2"),
            ("{{index .Tags 1}}", "demo:v2"),
            ("{{range .Config.Env}}{{println .}}{{end}}", "A=1\nB=2\n"),
            ("{{index (split .ID \":\") 1 | upper}}", "4F1A"),
            (
                "{{truncate .ID 6}}|{{title \"of it\"}}|{{lower \"X\"}}",
                "sha256|Of It|x",
            ),
            ("{{len .Tags}}{{if .Config.Cmd}} with{{end}}", "2"),
        ] {
            assert_eq!(filled(template, document.clone()), text, "{template}");
        }
    }

    #[test]
    fn what_is_no_format_is_refused_and_what_a_document_has_not_is_no_value() {
        for text in ["", "tabel", "yaml", "{{.ID", "table ID", "table"] {
            let parsed = text.parse::<Format>();
            assert_eq!(parsed.is_ok(), text == "table", "{text}");
        }
        let text = filled("{{.Missing}}{{if .Missing}} it{{end}}", json!({"ID": 1}));
        assert_eq!(text, "<no value>");
        for template in [
            "{{join .ID}}",
            "{{nothing .ID}}",
            "{{truncate .ID \"x\"}}",
            "{{join .ID \",\"}}",
        ] {
            let template: Template = template.parse().unwrap();
            template.fill(json!({"ID": "x"})).unwrap_err();
        }
    }

    #[test]
    fn functions_leave_headings_as_they_are() {
        let template: Template = "{{join .Tags \",\"}}\\t{{len .Layers}}".parse().unwrap();
        let columns = template.columns(&[json!({"Tags": ["a", "b"], "Layers": [1, 2]})]);
        assert_eq!(columns.unwrap(), "TAGS   LAYERS\na,b    2\n");
    }

    #[test]
    fn no_name_and_no_value_speaks_to_the_terminal_and_none_is_cut() {
        let mut document = json!({"a\u{1b}]0;": {"b\u{202e}": ["x\u{7}".repeat(2000)]}});
        clean(&mut document);
        assert_eq!(document, json!({"a]0;": {"b": ["x".repeat(2000)]}}));
    }

    #[test]
    fn headings_are_the_names_of_fields_as_words() {
        let headings = headings(&json!({"ID": 1, "CreatedAt": 1, "size_bytes": {"x": 1}}));
        let wanted = json!({"ID": "ID", "CreatedAt": "CREATED AT", "size_bytes": "SIZE BYTES"});
        assert_eq!(headings, wanted);
    }
}
