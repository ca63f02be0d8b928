//! A server of ours that answers as OpenAI-compatible ones do, and remembers what it was asked.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use serde_json::{Value, json};
use vodka_images::{DecodeOptions, RgbImage, decode_bytes};

/// A request.
#[derive(Debug, Clone)]
pub struct Asked {
    pub path: String,
    pub authorization: Option<String>,
    pub body: Value,
}

impl Asked {
    /// The picture in it.
    pub fn picture(&self) -> RgbImage {
        let url = self.body["messages"][0]["content"][1]["image_url"]["url"].as_str().unwrap();
        let bytes = from_base64(url.strip_prefix("data:image/jpeg;base64,").unwrap());
        decode_bytes(&bytes, &DecodeOptions::default()).unwrap().picture.into_rgb()
    }

    /// Which of the pictures it is: see [`grey`].
    pub fn number(&self) -> u8 {
        (self.picture().get_pixel(0, 0).0[0] + 5) / 10
    }
}

/// A picture that can be told from others by its grey, also after JPEG.
pub fn grey(number: u8, width: u32, height: u32) -> RgbImage {
    RgbImage::from_pixel(width, height, vodka_images::Rgb([number * 10; 3]))
}

/// What the server says: status, further headers, body; or nothing at all.
pub enum Answer {
    Say(u16, String, String),
    Nothing,
}

/// A caption, as a chat answers.
pub fn caption(text: &str) -> Answer {
    let message = json!({ "choices": [{ "finish_reason": "stop", "message": { "content": text } }] });
    Answer::Say(200, String::new(), message.to_string())
}

/// A server of its own thread, which ends with the test.
pub struct Server {
    pub endpoint: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    /// Answers each request by its place in order and its content.
    pub fn start(answer: impl Fn(usize, &Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}/v1", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (Arc::clone(&asked), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                thread::spawn(move || serve(stream.unwrap(), &log, &*answer));
            }
        });
        Self { endpoint, asked }
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Which pictures were asked about, in order.
    pub fn numbers(&self) -> Vec<u8> {
        self.asked().iter().map(Asked::number).collect()
    }
}

fn serve(
    stream: TcpStream,
    log: &Mutex<Vec<Asked>>,
    answer: &(dyn Fn(usize, &Asked) -> Answer + Send + Sync),
) {
    let mut reader = BufReader::new(stream);
    let (mut path, mut authorization, mut length) = (String::new(), None, 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let line = line.trim_end();
        match line.split_once(": ") {
            _ if line.is_empty() => break,
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                authorization = Some(value.to_owned());
            }
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().unwrap();
            }
            Some(_) => {}
            None => path = line.split(' ').nth(1).unwrap().to_owned(),
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let asked = Asked { path, authorization, body: serde_json::from_slice(&body).unwrap() };
    let place = {
        let mut log = log.lock().unwrap();
        log.push(asked.clone());
        log.len() - 1
    };
    let mut stream = reader.into_inner();
    match answer(place, &asked) {
        Answer::Say(status, headers, text) => {
            let length = text.len();
            let head = format!(
                "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
            );
            // Who asked may be gone.
            let _ = stream.write_all(format!("{head}{text}").as_bytes());
        }
        // Until the other side gives up.
        Answer::Nothing => drop(stream.read(&mut [0])),
    }
}

fn from_base64(text: &str) -> Vec<u8> {
    let value = |letter: u8| match letter {
        b'A'..=b'Z' => letter - b'A',
        b'a'..=b'z' => letter - b'a' + 26,
        b'0'..=b'9' => letter - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let letters: Vec<_> = text.trim_end_matches('=').bytes().map(value).collect();
    let group = |group: &[u8]| {
        let shifted =
            group.iter().zip([18, 12, 6, 0]).fold(0_u32, |bits, (value, by)| bits | u32::from(*value) << by);
        shifted.to_be_bytes()[1..group.len()].to_vec()
    };
    letters.chunks(4).flat_map(group).collect()
}
