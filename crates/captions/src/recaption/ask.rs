//! One question to an OpenAI-compatible endpoint: the picture out, the caption back, and what to do when it does not come.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use ureq::{Agent, http::HeaderMap};

use crate::{Caption, Error, Result};

/// So much of an answer is read, in bytes.
const ANSWER_MAX: u64 = 4 << 20;

/// No pause is longer.
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// A key that is shown nowhere and stored nowhere.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// A key, of which space at the ends does not count.
    pub fn new(key: &str) -> Self {
        Self(key.trim().to_owned())
    }

    /// Whether a header can carry it.
    pub(super) fn is_usable(&self) -> bool {
        !self.0.is_empty() && self.0.bytes().all(|byte| byte.is_ascii_graphic())
    }

    /// Text without it: servers like to say which key they were given.
    fn redact(&self, text: &str) -> String {
        if self.0.is_empty() { text.to_owned() } else { text.replace(&self.0, "***") }
    }

    /// What the server says about an error, in a line without the key.
    fn said(&self, text: &str) -> String {
        const SHOWN: usize = 200;
        let parsed: Value = serde_json::from_str(text).unwrap_or_default();
        let message = parsed["error"]["message"].as_str().or(parsed["error"].as_str()).unwrap_or(text);
        let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
        self.redact(&line).chars().take(SHOWN).collect()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// What the model says about a picture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reply {
    /// A caption, on one line, and whether it ends where the answer had to end.
    Caption { text: String, cut: bool },
    /// None, and why.
    None(String),
}

/// Why there is no reply.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may come when asked again.
    Again { reason: String, after: Option<Duration> },
    /// Not for this picture.
    Picture(String),
    /// For none.
    All(Error),
}

/// Who is asked, and how.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    url: String,
    key: Secret,
    model: String,
    prompt: String,
    max_tokens: Option<u32>,
    temperature: Option<f32>,
}

/// What a request says beside the picture.
pub(super) struct Wording<'a> {
    pub(super) model: &'a str,
    pub(super) prompt: &'a str,
    pub(super) max_tokens: Option<u32>,
    pub(super) temperature: Option<f32>,
}

impl Client {
    pub(super) fn new(endpoint: &str, key: Secret, wording: &Wording<'_>, timeout: Duration) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // A redirect is an answer like others: nothing, and above all no key, goes where it points.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(timeout))
            .user_agent(concat!("vodka/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        let Wording { model, prompt, max_tokens, temperature } = *wording;
        let (model, prompt) = (model.to_owned(), prompt.to_owned());
        Self { agent, url: url(endpoint), key, model, prompt, max_tokens, temperature }
    }

    /// Asks for a caption of a JPEG.
    pub(super) fn ask(&self, jpeg: &[u8]) -> Result<Reply, Failure> {
        let mut request = self.agent.post(&self.url).header("Content-Type", "application/json");
        if !self.key.0.is_empty() {
            request = request.header("Authorization", format!("Bearer {}", self.key.0));
        }
        let again = |error: &dyn fmt::Display| Failure::Again {
            reason: self.key.redact(&error.to_string()),
            after: None,
        };
        let mut response = request.send(self.body(jpeg)).map_err(|error| again(&error))?;
        let (status, after) = (response.status().as_u16(), retry_after(response.headers()));
        let target = response.headers().get("location").and_then(|to| to.to_str().ok()).map(str::to_owned);
        let read = response.body_mut().with_config().limit(ANSWER_MAX).lossy_utf8(true).read_to_string();
        let text = read.map_err(|error| again(&error))?;
        let said = || self.key.said(&text);
        match status {
            200..=299 => reply(&text, &self.key).map_err(|reason| Failure::Again { reason, after: None }),
            300..=399 => {
                Err(Failure::All(Error::Redirected { to: self.key.redact(&target.unwrap_or_default()) }))
            }
            400 | 413 | 415 | 422 | 451 => {
                Err(Failure::Picture(format!("the server answers {status}: {}", said())))
            }
            408 | 409 | 425 | 429 | 500..=599 => {
                Err(Failure::Again { reason: format!("the server answers {status}: {}", said()), after })
            }
            _ => Err(Failure::All(Error::Endpoint { status, said: said() })),
        }
    }

    fn body(&self, jpeg: &[u8]) -> String {
        let url = format!("data:image/jpeg;base64,{}", base64(jpeg));
        let content = json!([
            { "type": "text", "text": self.prompt },
            { "type": "image_url", "image_url": { "url": url } },
        ]);
        let mut body = json!({ "model": self.model, "messages": [{ "role": "user", "content": content }] });
        if let Some(tokens) = self.max_tokens {
            body["max_tokens"] = tokens.into();
        }
        if let Some(temperature) = self.temperature {
            // As the user has written it: 0.2, not 0.20000000298.
            body["temperature"] = crate::caption::decimal(temperature).into();
        }
        body.to_string()
    }
}

/// Where questions go, given the address of the service (`https://HOST/v1`) or of its chat itself.
fn url(endpoint: &str) -> String {
    let endpoint = endpoint.trim_end_matches('/');
    match endpoint.ends_with("/chat/completions") {
        true => endpoint.to_owned(),
        false => format!("{endpoint}/chat/completions"),
    }
}

/// The server's wish, in seconds. A date is not read: the usual pause then has to do.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: f64 = headers.get("retry-after")?.to_str().ok()?.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// How long to wait after a number of failures: twice as long each time, and at least as long as the server wishes.
pub(super) fn pause(failures: u32, base: Duration, wish: Option<Duration>) -> Duration {
    let grown = base.saturating_mul(1 << failures.min(6));
    grown.max(wish.unwrap_or_default()).min(PAUSE_MAX)
}

/// Reads the answer of a chat; an error says what is wrong with it. Captions stay as they are, whatever the key is.
fn reply(text: &str, key: &Secret) -> Result<Reply, String> {
    let answer: Value =
        serde_json::from_str(text).map_err(|_| format!("the answer is not JSON: {}", key.said(text)))?;
    let choice = &answer["choices"][0];
    let message = choice["message"]
        .as_object()
        .ok_or_else(|| format!("the answer has no message: {}", key.said(text)))?;
    if let Some(refusal) = message.get("refusal").and_then(Value::as_str).filter(|text| !text.is_empty()) {
        return Ok(Reply::None(format!("refused: {}", key.said(refusal))));
    }
    let finish = choice["finish_reason"].as_str().unwrap_or_default();
    if finish == "content_filter" {
        return Ok(Reply::None("refused by the server's content filter".to_owned()));
    }
    let caption = Caption::new(&content(message.get("content").unwrap_or(&Value::Null))).text;
    Ok(match caption.as_str() {
        "" => Reply::None("an empty answer".to_owned()),
        text if is_refusal(text) => Reply::None(format!("refused: {}", key.said(text))),
        _ => Reply::Caption { text: caption, cut: finish == "length" },
    })
}

/// The text of a message, which may come in parts.
fn content(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => String::new(),
    }
}

/// Whether a text is an excuse and not a caption.
fn is_refusal(text: &str) -> bool {
    let excuses = [
        "i'm sorry",
        "i am sorry",
        "sorry, ",
        "i can't ",
        "i cannot ",
        "i can not ",
        "i'm unable",
        "i am unable",
        "i'm not able",
        "i am not able",
        "i won't ",
        "as an ai",
        "i'm just an ai",
        "unfortunately, i",
    ];
    let start: String = text.chars().take(24).collect::<String>().to_lowercase().replace('\u{2019}', "'");
    excuses.iter().any(|excuse| start.starts_with(excuse))
}

/// Bytes as base64 (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let of = |k: usize| u32::from(group.get(k).copied().unwrap_or_default());
        let bits = of(0) << 16 | of(1) << 8 | of(2);
        for k in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * k) & 63) as usize];
            text.push(if k <= group.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        let pairs = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        for (length, wanted) in pairs.iter().enumerate() {
            assert_eq!(base64(&b"foobar"[..length]), *wanted);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    #[test]
    fn answers_are_captions_refusals_or_nonsense() {
        let reply = |text: &str| reply(text, &Secret::default());
        let of = |message: &str| {
            reply(&format!("{{\"choices\":[{{\"finish_reason\":\"stop\",\"message\":{message}}}]}}"))
        };
        let caption = |text: &str| Ok(Reply::Caption { text: text.to_owned(), cut: false });
        assert_eq!(of(r#"{"content":" A red\n\n circle. "}"#), caption("A red circle."));
        assert_eq!(
            of(r#"{"content":[{"type":"text","text":"A "},{"type":"text","text":"star"}]}"#),
            caption("A star")
        );
        for (message, reason) in [
            (r#"{"content":""}"#, "an empty answer"),
            (r#"{"content":null}"#, "an empty answer"),
            (r#"{}"#, "an empty answer"),
            (r#"{"content":null,"refusal":"No people."}"#, "refused: No people."),
            (r#"{"content":"I’m sorry, but I can't help."}"#, "refused: I’m sorry, but I can't help."),
        ] {
            assert_eq!(of(message), Ok(Reply::None(reason.to_owned())), "{message}");
        }
        assert_eq!(of(r#"{"content":"A sorry sight","refusal":""}"#), caption("A sorry sight"));
        let cut = reply(r#"{"choices":[{"finish_reason":"length","message":{"content":"A re"}}]}"#);
        assert_eq!(cut, Ok(Reply::Caption { text: "A re".to_owned(), cut: true }));
        let filtered = reply(r#"{"choices":[{"finish_reason":"content_filter","message":{"content":"A"}}]}"#);
        assert_eq!(filtered, Ok(Reply::None("refused by the server's content filter".to_owned())));
        assert_eq!(reply("<html>oops"), Err("the answer is not JSON: <html>oops".to_owned()));
        assert_eq!(reply("[]"), Err("the answer has no message: []".to_owned()));
        assert!(reply(r#"{"choices":[]}"#).is_err());
    }

    #[test]
    fn captions_keep_the_word_that_is_the_key() {
        let of = |content: &str, key: &str| {
            let text = json!({ "choices": [{ "message": { "content": content } }] }).to_string();
            reply(&text, &Secret::new(key))
        };
        for key in ["none", "ollama", "content"] {
            let text = format!("A sign that says {key}.");
            assert_eq!(of(&text, key), Ok(Reply::Caption { text, cut: false }));
        }
        assert_eq!(of("I cannot say sk-1", "sk-1"), Ok(Reply::None("refused: I cannot say ***".to_owned())));
        assert_eq!(reply("sk-1", &Secret::new("sk-1")), Err("the answer is not JSON: ***".to_owned()));
        let long = format!("{}sk-1234", "a".repeat(196));
        assert!(!Secret::new("sk-1234").said(&long).contains("sk-"), "no part of a key is shown");
    }

    #[test]
    fn pauses_grow_and_heed_the_server() {
        let second = Duration::from_secs(1);
        let pauses: Vec<_> = [0, 1, 2, 6, 60].iter().map(|n| pause(*n, second, None).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 64, 64]);
        assert_eq!(pause(0, second, Some(second * 30)), second * 30);
        assert_eq!(pause(3, second, Some(second)), second * 8);
        assert_eq!(pause(0, second, Some(second * 100_000)), PAUSE_MAX);
        let headers =
            |value: &str| HeaderMap::from_iter([("retry-after".parse().unwrap(), value.parse().unwrap())]);
        assert_eq!(retry_after(&headers("2.5")), Some(Duration::from_millis(2500)));
        for value in ["-1", "NaN", "Wed, 21 Oct 2026 07:28:00 GMT", "1e300"] {
            assert_eq!(retry_after(&headers(value)), None, "{value}");
        }
    }

    #[test]
    fn keys_are_not_shown() {
        let key = Secret::new(" sk-1234\n");
        assert_eq!(format!("{key:?}"), "***");
        assert_eq!(key.redact("wrong key sk-1234."), "wrong key ***.");
        assert!(key.is_usable() && !Secret::new("a b").is_usable() && !Secret::new("").is_usable());
        assert_eq!(url("http://host/v1/"), "http://host/v1/chat/completions");
        assert_eq!(url("http://host/chat/completions"), "http://host/chat/completions");
    }

    proptest! {
        #[test]
        fn no_answer_panics(text in any::<String>()) {
            let _ = reply(&text, &Secret::new("error"));
        }

        #[test]
        fn base64_has_the_right_length_and_letters(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let text = base64(&bytes);
            prop_assert_eq!(text.len(), bytes.len().div_ceil(3) * 4);
            let back: Vec<u8> = text.trim_end_matches('=').bytes().collect::<Vec<_>>().chunks(4).flat_map(|group| {
                let value = |letter: u8| match letter {
                    b'A'..=b'Z' => letter - b'A',
                    b'a'..=b'z' => letter - b'a' + 26,
                    b'0'..=b'9' => letter - b'0' + 52,
                    b'+' => 62,
                    _ => 63,
                };
                let bits = group.iter().zip([18, 12, 6, 0]).fold(0_u32, |bits, (letter, shift)| bits | u32::from(value(*letter)) << shift);
                bits.to_be_bytes()[1..group.len()].to_vec()
            }).collect();
            prop_assert_eq!(back, bytes);
        }
    }
}
