//! The laws of the query language: text and meaning agree, and so do the evaluator and a naive one.

use std::collections::BTreeMap;

use proptest::prelude::*;
use vodka_prompt::token_count;

use super::*;
use crate::canonical;

fn said(text: &str) -> String {
    text.parse::<Query>().unwrap_err().to_string()
}

/// The fault alone, and the bytes it is about.
fn fault(text: &str) -> (String, Range<usize>) {
    let error = text.parse::<Query>().unwrap_err();
    (error.fault.to_string(), error.at)
}

#[test]
fn the_plain_spelling_says_the_same() {
    for (text, plain) in [
        ("tag:blurry", "tag:blurry"),
        ("TAG: \"Blurry  Background\" >= 90%", "tag:blurry_background>=90%"),
        ("a", ""),
        ("not not captioned", "not not captioned"),
        ("exists and captioned or tagged", "exists and captioned or tagged"),
        ("(exists and captioned) or tagged", "exists and captioned or tagged"),
        ("exists AND (captioned OR tagged)", "exists and (captioned or tagged)"),
        ("not (exists or tagged)", "not (exists or tagged)"),
        ("width==768px", "width=768px"),
        ("bytes < 1.5MB", "bytes<1.5mb"),
        ("tag:saber_(fate)>.5", "tag:\"saber_(fate)\">0.5"),
        ("(tag:saber_(fate))", "tag:\"saber_(fate)\""),
        (r#"tag:"don't_say_\"lazy\"""#, r#"tag:"don't_say_\"lazy\"""#),
        (r#"tag:";)" and tag:"\\m/""#, r#"tag:";)" and tag:"\\m/""#),
        (r"tag:\m/", r#"tag:"\\m/""#),
        ("tag:k-on! and tag:a!=1", "tag:\"k-on!\" and tag:a!=1"),
        ("tag:blurry_*>0.5", "tag:blurry_*>0.5"),
        ("tag:\"*_*\"", "tag:\"*_*\""),
        (r#"caption~"\d+ hearts?""#, r#"caption~"\\d+ hearts?""#),
        ("format:JPG", "format:jpeg"),
        ("hash:ABC1", "hash:abc1"),
        ("exists # there\n  and # and\n tagged", "exists and tagged"),
        ("category:character>0.8", "category:character>0.8"),
    ] {
        match text.parse::<Query>() {
            Ok(query) => assert_eq!(query.to_string(), plain, "{text}"),
            Err(error) => assert_eq!(plain, "", "{error}"),
        }
    }
}

#[test]
fn faults_are_shown_with_their_place() {
    assert_eq!(
        said("tag:blurry>0.9 and widht>=768"),
        "query, byte 19: no field `widht`, did you mean `width`?\n  tag:blurry>0.9 and widht>=768\n                     ^^^^^"
    );
    assert_eq!(
        said("exists and # these\n  tag:é and\n\ttag:blurry>9 and tagged\n"),
        "query, byte 44 (line 3): a score is from 0 to 1 (0% to 100%), found 9\n   tag:blurry>9 and tagged\n              ^"
    );
    assert_eq!(
        said("exists and"),
        "query, byte 10: expected a test such as `tag:blurry` or `width>=768`, found the end\n  exists and\n            ^"
    );
}

#[test]
fn every_fault_has_its_words() {
    for (text, words, at) in [
        ("", "expected a test such as `tag:blurry` or `width>=768`, found the end", 0..0),
        ("exists tagged", "expected `and`, `or` or the end, found `tagged`", 7..13),
        ("exists && tagged", "expected `and`, found `&&`", 7..9),
        ("exists || tagged", "expected `or`, found `||`", 7..9),
        ("!exists", "expected a test such as `tag:blurry` or `width>=768`, found `!exists`", 0..7),
        ("(exists", "expected `and`, `or` or `)`, found the end", 7..7),
        ("exists)", "expected `and`, `or` or the end, found `)`", 6..7),
        ("tag blurry", "expected `:`, found `blurry`", 4..10),
        ("tag:", "expected the name of a tag, found the end", 4..4),
        ("tag:\" \"", "expected the name of a tag, found an empty text", 4..7),
        ("tag:>0.5", "expected the name of a tag, found `>`", 4..5),
        ("tag:\"blurry", "the text has no closing `\"`", 4..11),
        ("tag:a>", "expected a number, found the end", 6..6),
        ("tag:a>-1", "expected a number, found `-1`", 6..8),
        ("tag:a>0.9.1", "expected a number, found `0.9.1`", 6..11),
        ("tag:a>120%", "a score is from 0 to 1 (0% to 100%), found 120%", 6..10),
        ("tag:a>0.5mb", "`tag` does not take the unit `mb`", 6..11),
        ("width", "expected a comparison: `<`, `<=`, `>`, `>=`, `=` or `!=`, found the end", 5..5),
        ("width:768", "expected a comparison: `<`, `<=`, `>`, `>=`, `=` or `!=`, found `:`", 5..6),
        ("width>1mb", "`width` does not take the unit `mb`", 6..9),
        ("bytes>1mbs", "no unit `mbs`, did you mean `mb`?", 6..10),
        ("caption=heart", "expected `:` or `~`, found `=`", 7..8),
        ("format~png", "expected `:`, found `~`", 6..7),
        ("format:pgn", "no format `pgn`, did you mean `png`?", 7..10),
        ("hash:xyz", "expected hexadecimal digits, found `xyz`", 5..8),
        ("caption~\"(\"", "not a regular expression: unclosed group", 8..11),
        ("zzzzzzzzz", "no field `zzzzzzzzz`", 0..9),
    ] {
        assert_eq!(fault(text), (words.to_owned(), at), "{text}");
    }
    let deep = format!("{}exists", "not ".repeat(1000));
    assert_eq!(fault(&deep).0, "more than 200 parentheses and `not`s within each other");
    assert!("(".repeat(100_000).parse::<Query>().is_err());
}

fn names() -> Names {
    let mut names = Names::default();
    for (tag, category) in [
        ("blurry", "general"),
        ("blurry_background", "general"),
        ("solo", "general"),
        (";)", "general"),
        ("explicit", "rating"),
        ("rating:safe", "rating"),
        ("miku", "character"),
        ("saber_(fate)", "character"),
    ] {
        names.add(tag, Some(category));
    }
    names
}

#[test]
fn names_mean_what_the_table_has() {
    let names = names();
    let meant = |text: &str| {
        let query: Query = text.parse().unwrap();
        names.resolve(&query, false).map(|(meant, _)| meant.concat().join(" ")).map_err(|e| e.to_string())
    };
    assert_eq!(meant("tag:Blurry").unwrap(), "blurry");
    assert_eq!(meant("tag:blurry*").unwrap(), "blurry blurry_background");
    assert_eq!(meant("tag:?olo").unwrap(), "solo");
    assert_eq!(meant("tag:\";)\"").unwrap(), ";)");
    assert_eq!(meant("rating:explicit or rating:safe").unwrap(), "explicit rating:safe");
    assert_eq!(meant("category:character").unwrap(), "miku saber_(fate)");
    assert_eq!(
        meant("exists and tag:blury>0.9").unwrap_err(),
        "query, byte 11: no tag `blury`, did you mean `blurry`?\n  exists and tag:blury>0.9\n             ^^^^^^^^^^^^^"
    );
    assert!(meant("rating:save").unwrap_err().contains("no rating `save`, did you mean `safe`?"));
    assert!(meant("rating:solo").unwrap_err().contains("no rating `solo`"));
    assert!(meant("category:charakter").unwrap_err().contains("did you mean `character`?"));
    assert!(meant("tag:zz*").unwrap_err().contains("no tag `zz*`\n"));
    let query: Query = "not tag:blury".parse().unwrap();
    let (meant, warnings) = names.resolve(&query, true).unwrap();
    assert_eq!(
        (meant, warnings),
        (vec![Vec::new()], vec!["no tag `blury`, did you mean `blurry`?".to_owned()])
    );
}

#[test]
fn a_score_of_the_table_equals_the_same_number_in_a_query() {
    let fits = |text: &str, score: f32| {
        let facts = [Facts { scores: vec![score], ..Facts::default() }];
        evaluate(&text.parse().unwrap(), 0, 0.3, &facts).fits[0]
    };
    assert!(fits("tag:a>=0.9", 0.9) && fits("tag:a=90%", 0.9) && !fits("tag:a>0.9", 0.9));
    assert!(fits("tag:a", 0.3) && !fits("tag:a", 0.29) && fits("tag:a<0.3", 0.0));
    let facts = [Facts { scores: vec![0.0], ..Facts::default() }];
    assert!(!evaluate(&"tag:a".parse().unwrap(), 0, 0.0, &facts).fits[0], "absent is not there at 0 either");
}

#[test]
fn each_part_is_counted() {
    let facts = |captioned: bool, width| Facts {
        on_disk: true,
        size: Some((width, 10)),
        caption: captioned.then(|| "x".to_owned()),
        ..Facts::default()
    };
    let pictures = [facts(true, 10), facts(false, 20), facts(true, 30)];
    let query: Query = "exists and not (captioned or width>20)".parse().unwrap();
    let answer = evaluate(&query, 0, 0.3, &pictures);
    let parts: Vec<_> = answer.parts.iter().map(|p| (p.depth, p.text.as_str(), p.images)).collect();
    assert_eq!(
        parts,
        [
            (0, "exists and not (captioned or width>20)", 1),
            (1, "exists", 3),
            (1, "not (captioned or width>20)", 1),
            (2, "captioned or width>20", 2),
            (3, "captioned", 2),
            (3, "width>20", 1),
        ]
    );
    assert_eq!(answer.fits, [false, true, false]);
}

fn bound(units: &'static [Unit], max: f64) -> impl Strategy<Value = Bound> {
    let units: Vec<Unit> = units.iter().copied().chain([Unit::One]).collect();
    let relation = prop::sample::select(Relation::ALL.to_vec());
    (relation, 0.0..=max, prop::sample::select(units), any::<bool>()).prop_map(
        |(relation, number, unit, round)| {
            let number = if unit == Unit::Percent { number * 100.0 } else { number };
            Bound { relation, number: if round { number.floor() } else { number }, unit }
        },
    )
}

fn score(names: impl Strategy<Value = Pattern>) -> impl Strategy<Value = Test> {
    let kind = prop::sample::select(ScoreKind::ALL.to_vec());
    (kind, names, prop::option::of(bound(&[Unit::Percent], 1.0)))
        .prop_map(|(kind, name, bound)| Test::Score { kind, name, bound })
}

fn number(max: f64) -> impl Strategy<Value = Test> {
    prop::sample::select(NumberField::ALL.to_vec()).prop_flat_map(move |field| {
        bound(field.units(), max).prop_map(move |bound| Test::Number { field, bound })
    })
}

fn text(words: impl Strategy<Value = String> + Clone) -> impl Strategy<Value = Test> {
    let free = vec![TextField::Caption, TextField::Name, TextField::Folder];
    let plain = (prop::sample::select(free.clone()), words.clone())
        .prop_map(|(field, text)| Test::Text { field, text: TextMatch::Plain(text) });
    let regex = (prop::sample::select(free), words)
        .prop_map(|(field, text)| Test::Text { field, text: TextMatch::Regex(regex::escape(&text)) });
    let format = prop::sample::select(vec!["png", "jpeg", "webp", "bmp", "gif"])
        .prop_map(|f| Test::Text { field: TextField::Format, text: TextMatch::Plain(f.to_owned()) });
    let hash = "[0-9a-f]{1,3}"
        .prop_map(|digits| Test::Text { field: TextField::Hash, text: TextMatch::Plain(digits) });
    prop_oneof![plain, regex, format, hash]
}

fn flag() -> impl Strategy<Value = Test> {
    prop::sample::select(Flag::ALL.to_vec()).prop_map(Test::Flag)
}

fn expression(test: impl Strategy<Value = Test> + 'static) -> impl Strategy<Value = Expression> {
    test.prop_map(Expression::Test).prop_recursive(4, 16, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 2..4).prop_map(Expression::Any),
            prop::collection::vec(inner.clone(), 2..4).prop_map(Expression::All),
            inner.prop_map(|inner| Expression::Not(Box::new(inner))),
        ]
    })
}

/// Any name, and globs of what may stand in one without quotes.
fn any_name() -> impl Strategy<Value = Pattern> {
    let exact =
        any::<String>().prop_map(|name| canonical(&name)).prop_filter("empty", |name| !name.is_empty());
    let glob = r"[a-z_;:^\\']{0,4}[*?][a-z_(]{0,1}".prop_map(|glob| {
        let close = if glob.contains('(') { ")" } else { "" };
        glob + close
    });
    prop_oneof![exact.prop_map(Pattern::Exact), glob.prop_map(Pattern::Glob)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_query_is_what_its_text_says(
        expression in expression(prop_oneof![score(any_name()), number(1e12), text(any::<String>()), flag()])
    ) {
        let text = expression.to_string();
        let query: Query = text.parse().map_err(|e: QueryError| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(query.expression(), &expression, "{}", text);
        prop_assert_eq!(query.to_string(), text);
    }

    #[test]
    fn nothing_makes_the_parser_panic(text in any::<String>(), words in "[a-z():~\"<>=!#0-9.% \n]{0,30}") {
        for text in [text, words] {
            if let Err(error) = text.parse::<Query>() {
                prop_assert!(!error.to_string().is_empty());
            }
        }
    }

    #[test]
    fn the_evaluator_agrees_with_a_naive_one(
        expression in expression(prop_oneof![score(known_name()), number(40.0), text("[ab*?/. ]{0,3}"), flag()]),
        world in prop::collection::vec(picture(), 1..6),
    ) {
        let names = names();
        let query: Query = expression.to_string().parse().unwrap();
        let (meant, _) = names.resolve(&query, true).unwrap();
        let facts: Vec<Facts> = world.iter().map(|(facts, tags)| {
            let highest = |meant: &Vec<&str>| meant.iter().filter_map(|tag| tags.get(*tag)).copied().fold(0.0, f32::max);
            Facts { scores: meant.iter().map(highest).collect(), ..facts.clone() }
        }).collect();
        let answer = evaluate(&query, 0, 0.3, &facts);
        let naive: Vec<_> = world.iter().map(|(facts, tags)| naive(&expression, facts, tags)).collect();
        prop_assert_eq!(&answer.fits, &naive, "{}", query);
        prop_assert_eq!(answer.parts[0].images as usize, naive.iter().filter(|fits| **fits).count());
    }
}

const TAGS: [(&str, &str); 8] = [
    ("blurry", "general"),
    ("blurry_background", "general"),
    ("solo", "general"),
    (";)", "general"),
    ("explicit", "rating"),
    ("rating:safe", "rating"),
    ("miku", "character"),
    ("saber_(fate)", "character"),
];

fn known_name() -> impl Strategy<Value = Pattern> {
    let exact =
        ["blurry", "solo", ";)", "explicit", "safe", "rating:safe", "character", "rating", "saber_(fate)"];
    let globs = ["blurry*", "*o*", "?", "*", "*_(fate)", "ch*r", "?xplicit"];
    let exact = prop::sample::select(exact.to_vec()).prop_map(|name| Pattern::Exact(name.to_owned()));
    let glob = prop::sample::select(globs.to_vec()).prop_map(|name| Pattern::Glob(name.to_owned()));
    prop_oneof![exact, glob]
}

type Tagged = (Facts, BTreeMap<&'static str, f32>);

fn picture() -> impl Strategy<Value = Tagged> {
    let scores = prop::collection::btree_map(
        prop::sample::select(TAGS.map(|(tag, _)| tag).to_vec()),
        prop::sample::select(vec![0.1_f32, 0.3, 0.5, 0.9, 1.0]),
        0..5,
    );
    let name = "([ab]{1,2}/){0,2}[ab]{1,2}\\.(png|JPG|jfif|webp)";
    let sharpness = (0.0_f32..40.0, 0.0_f32..40.0, 0.0_f32..40.0, 0.0_f32..40.0)
        .prop_map(|(whole, min, median, max)| Sharpness { whole, min, median, max });
    let facts = (
        name,
        any::<[bool; 3]>(),
        prop::option::of((1_u32..40, 1_u32..40)),
        prop::option::of(0_u64..50),
        prop::option::of(sharpness),
        prop::option::of(any::<u8>()),
        prop::option::of("[abAB .]{0,6}"),
    );
    let facts =
        facts.prop_map(|(image, [on_disk, tagged, duplicate], size, bytes, sharpness, hash, caption)| {
            let hash = hash.map(|byte| vodka_stage::hash_bytes([byte]));
            Facts {
                image,
                on_disk,
                tagged,
                duplicate,
                size,
                bytes,
                sharpness,
                hash,
                caption,
                scores: Vec::new(),
            }
        });
    (facts, scores)
}

/// One picture, one test, straight from the documentation.
fn naive(expression: &Expression, facts: &Facts, tags: &BTreeMap<&str, f32>) -> bool {
    match expression {
        Expression::Any(parts) => parts.iter().any(|part| naive(part, facts, tags)),
        Expression::All(parts) => parts.iter().all(|part| naive(part, facts, tags)),
        Expression::Not(part) => !naive(part, facts, tags),
        Expression::Test(Test::Score { kind, name, bound }) => {
            let is_meant = |tag: &str, category: &str| match kind {
                ScoreKind::Tag => naive_name(name, tag),
                ScoreKind::Rating => {
                    category == "rating"
                        && (naive_name(name, tag) || naive_name(name, &tag.replace("rating:", "")))
                }
                ScoreKind::Category => naive_name(name, category),
            };
            let scores = TAGS.iter().filter(|(tag, category)| is_meant(tag, category));
            let score = scores.map(|(tag, _)| *tags.get(tag).unwrap_or(&0.0)).fold(0.0, f32::max);
            match bound {
                None => score >= 0.3,
                Some(bound) => compared(score.into(), f64::from(naive_value(bound) as f32), bound.relation),
            }
        }
        Expression::Test(Test::Number { field, bound }) => {
            let value = naive_number(*field, facts);
            value.is_some_and(|value| compared(value, naive_value(bound), bound.relation))
        }
        Expression::Test(Test::Text { field, text }) => naive_text(*field, text, facts),
        Expression::Test(Test::Flag(Flag::Exists)) => facts.on_disk,
        Expression::Test(Test::Flag(Flag::Captioned)) => facts.caption.clone().unwrap_or_default() != "",
        Expression::Test(Test::Flag(Flag::Duplicate)) => facts.duplicate,
        Expression::Test(Test::Flag(Flag::Tagged)) => facts.tagged,
    }
}

fn naive_value(bound: &Bound) -> f64 {
    let thousands = |power| f64::powi(1000.0, power);
    let kibi = |power| f64::powi(1024.0, power);
    match bound.unit.name() {
        "%" => bound.number / 100.0,
        "kb" => bound.number * thousands(1),
        "mb" | "mp" => bound.number * thousands(2),
        "gb" => bound.number * thousands(3),
        "kib" => bound.number * kibi(1),
        "mib" => bound.number * kibi(2),
        "gib" => bound.number * kibi(3),
        _ => bound.number,
    }
}

fn compared(a: f64, b: f64, relation: Relation) -> bool {
    let order = a.partial_cmp(&b).unwrap();
    match relation.name() {
        "<" => order.is_lt(),
        "<=" => order.is_le(),
        ">" => order.is_gt(),
        ">=" => order.is_ge(),
        "=" => order.is_eq(),
        _ => order.is_ne(),
    }
}

fn naive_number(field: NumberField, facts: &Facts) -> Option<f64> {
    let caption = facts.caption.clone().unwrap_or_default();
    let (width, height) = (facts.size.map(|s| f64::from(s.0)), facts.size.map(|s| f64::from(s.1)));
    let sharp = facts.sharpness;
    match field.name() {
        "width" => width,
        "height" => height,
        "pixels" => Some(width? * height?),
        "aspect" => Some(width? / height?),
        "bytes" => facts.bytes.map(|bytes| bytes as f64),
        "megabytes" => facts.bytes.map(|bytes| bytes as f64 / 1_000_000.0),
        "sharpness" => sharp.map(|s| s.whole.into()),
        "sharpness_min" => sharp.map(|s| s.min.into()),
        "sharpness_median" => sharp.map(|s| s.median.into()),
        "sharpness_max" => sharp.map(|s| s.max.into()),
        "tokens" => Some(token_count(&caption) as f64),
        "words" => Some(caption.split(' ').filter(|word| !word.is_empty()).count() as f64),
        other => panic!("{other}"),
    }
}

fn naive_text(field: TextField, text: &TextMatch, facts: &Facts) -> bool {
    let (folder, name) = facts.image.rsplit_once('/').unwrap_or((".", &facts.image));
    match (field.name(), text) {
        ("caption", TextMatch::Plain(text)) => {
            facts.caption.as_ref().is_some_and(|c| c.to_lowercase().contains(&text.to_lowercase()))
        }
        ("name", TextMatch::Plain(glob)) => {
            let of = if glob.contains('/') { &facts.image } else { name };
            naive_glob(glob.as_bytes(), of.as_bytes(), true)
        }
        ("folder", TextMatch::Plain(glob)) => {
            let above =
                facts.image.char_indices().filter(|(_, c)| *c == '/').map(|(at, _)| &facts.image[..at]);
            above.chain(["."]).any(|folder| naive_glob(glob.as_bytes(), folder.as_bytes(), true))
        }
        ("format", TextMatch::Plain(format)) => {
            let ending = name.rsplit('.').next().unwrap().to_lowercase();
            *format == if ["jpg", "jfif"].contains(&ending.as_str()) { "jpeg".into() } else { ending }
        }
        ("hash", TextMatch::Plain(digits)) => {
            facts.hash.is_some_and(|hash| hash.to_string()[..digits.len()] == **digits)
        }
        // Only escaped texts are tried.
        (of, TextMatch::Regex(regex)) => {
            let text = regex.replace('\\', "");
            match of {
                "caption" => facts.caption.as_ref().is_some_and(|caption| caption.contains(&text)),
                "name" => facts.image.contains(&text),
                _ => folder.contains(&text),
            }
        }
        (other, _) => panic!("{other}"),
    }
}

fn naive_name(pattern: &Pattern, name: &str) -> bool {
    match pattern {
        Pattern::Exact(exact) => exact == name,
        Pattern::Glob(glob) => naive_glob(glob.as_bytes(), name.as_bytes(), false),
    }
}

fn naive_glob(glob: &[u8], text: &[u8], paths: bool) -> bool {
    match (glob, text) {
        ([], rest) => rest.is_empty(),
        ([b'*', b'*', glob @ ..], _) if paths => {
            (0..=text.len()).any(|skip| naive_glob(glob, &text[skip..], true))
        }
        ([b'*', glob @ ..], _) => {
            let stop = text.iter().position(|c| paths && *c == b'/').unwrap_or(text.len());
            (0..=stop).any(|skip| naive_glob(glob, &text[skip..], paths))
        }
        ([b'?', glob @ ..], [c, text @ ..]) => !(paths && *c == b'/') && naive_glob(glob, text, paths),
        ([a, glob @ ..], [b, text @ ..]) => a == b && naive_glob(glob, text, paths),
        (_, []) => false,
    }
}
