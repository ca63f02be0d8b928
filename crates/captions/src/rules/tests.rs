//! What the rules make of tags, in which order, and what is said about rules that cannot be meant.

use std::{fs, path::Path};

use proptest::prelude::*;

use super::*;

fn rules(text: &str) -> Rules {
    Rules::parse(text, Path::new("rules.toml")).unwrap()
}

fn said(text: &str) -> String {
    let error = Rules::parse(text, Path::new("rules.toml")).unwrap_err();
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

fn tags(names: &str) -> Vec<ScoredTag> {
    let tag = |text: &str| {
        let (name, score) = text.split_once('=').unwrap_or((text, "0.5"));
        ScoredTag { name: name.to_owned(), score: score.parse().unwrap(), category: None }
    };
    names.split_whitespace().map(tag).collect()
}

fn shown(tags: &[ScoredTag]) -> String {
    let shown: Vec<_> = tags.iter().map(|tag| format!("{}={}", tag.name, tag.score)).collect();
    shown.join(" ")
}

fn cleaned(rules: &Rules, names: &str) -> String {
    let mut tags = tags(names);
    rules.apply(&mut tags, &mut RuleHits::default());
    shown(&tags)
}

#[test]
fn the_order_is_fixed_whatever_the_order_in_the_file() {
    let rules = rules(
        r#"
        blacklist = ["hidden*"]
        [[regex]]
        pattern = "(.+)_\\(medium\\)"
        replacement = "$1"
        [[regex]]
        pattern = "watercolour"
        replacement = "painting"
        [replace]
        aquarelle = "watercolour_(medium)"
        old = "never"
        [[implication]]
        tag = "special"
        implies = ["general", "hidden_too"]
        [aliases]
        "Old " = "older"
        older = "special"
        "#,
    );
    let mut hits = RuleHits::default();
    let mut picture = tags("old=0.4 general=0.9 aquarelle=0.3 painting=0.2 hidden=1 sketch_(medium)=0.7");
    rules.apply(&mut picture, &mut hits);
    assert_eq!(shown(&picture), "special=0.4 painting=0.3 sketch=0.7");
    assert_eq!(hits.merged, 1);
    let uses: Vec<_> =
        rules.report(&hits).iter().map(|rule| (rule.rule.clone(), rule.line, rule.hits)).collect();
    let expected = [
        ("old -> older", 16, 1),
        ("older -> special", 17, 1),
        ("special -> general", 13, 1),
        ("special -> hidden_too", 13, 0),
        ("hidden*", 2, 1),
        ("aquarelle -> watercolour_(medium)", 10, 1),
        ("old -> never", 11, 0),
        (r"(.+)_\(medium\) -> $1", 4, 2),
        ("watercolour -> painting", 7, 1),
    ];
    assert_eq!(uses, expected.map(|(rule, line, hits)| (rule.to_owned(), line, hits)));
    assert_eq!(
        rules.warnings(&hits),
        [
            "`rules.toml` line 13, implication `special -> hidden_too` hit nothing",
            "`rules.toml` line 11, replace `old -> never` hit nothing"
        ]
    );
}

#[test]
fn nothing_fits_by_a_part_of_its_name() {
    let rules = rules(
        r#"
        blacklist = ["blur", "*_hair", '\?']
        aliases = { solo = "one" }
        replace = { back = "front" }
        [[regex]]
        pattern = "red|blue"
        replacement = "colour"
        "#,
    );
    let stay = "blurry=0.5 hair=0.5 solo_focus=0.5 background=0.5 red_hat=0.5 dark_blue=0.5 a=0.5";
    assert_eq!(cleaned(&rules, stay), stay);
    assert_eq!(cleaned(&rules, "blur long_hair ? solo back red"), "one=0.5 front=0.5 colour=0.5");
}

#[test]
fn a_tag_that_is_hardly_there_drops_no_general_one() {
    let implication = "[[implication]]\ntag = \"blurry_background\"\nimplies = \"blurry\"\n";
    let usual = rules(implication);
    let doubtful = "blurry=0.95 blurry_background=0.11";
    assert_eq!(cleaned(&usual, doubtful), doubtful);
    assert_eq!(cleaned(&usual, "blurry=0.95 blurry_background=0.3"), "blurry_background=0.3");
    let any = rules(&format!("implication_min_score = 0\n{implication}"));
    assert_eq!(cleaned(&any, doubtful), "blurry_background=0.11");
    let expands = rules(&format!("implication_mode = \"expand\"\n{implication}"));
    assert_eq!(cleaned(&expands, "blurry_background=0.11"), "blurry_background=0.11 blurry=0.11");
    let error = said("implication_min_score = 1.5");
    assert_eq!(error, "implication_min_score is 1.5, expected a score from 0 to 1");
}

#[test]
fn implications_are_transitive_and_stand_circles() {
    let chain = r#"
        [[implication]]
        tag = "a"
        implies = "b"
        [[implication]]
        tag = "b"
        implies = "c"
        [[implication]]
        tag = "x"
        implies = "y"
        [[implication]]
        tag = "y"
        implies = ["x", "c"]
    "#;
    let drop = rules(chain);
    assert_eq!(cleaned(&drop, "c a"), "a=0.5");
    assert_eq!(cleaned(&drop, "c b a"), "a=0.5");
    assert_eq!(cleaned(&drop, "c b"), "b=0.5");
    assert_eq!(cleaned(&drop, "x y"), "x=0.5 y=0.5");
    assert_eq!(cleaned(&drop, "c x"), "x=0.5");
    let mut hits = RuleHits::default();
    drop.apply(&mut tags("c a"), &mut hits);
    assert_eq!(drop.report(&hits).iter().map(|rule| rule.hits).collect::<Vec<_>>(), [1, 1, 0, 0, 0]);
    assert!(
        drop.warnings(&hits).contains(&"these tags imply each other: x, y; they count as one".to_owned())
    );

    let expand = rules(&format!("implication_mode = \"expand\"\n{chain}"));
    assert_eq!(cleaned(&expand, "a=0.5"), "a=0.5 b=0.5 c=0.5");
    assert_eq!(cleaned(&expand, "a=0.5 b=0.75 c=0.25"), "a=0.5 b=0.75 c=0.75");
    assert_eq!(cleaned(&expand, "x=0.5"), "x=0.5 c=0.5 y=0.5");
    assert_eq!(cleaned(&expand, "z=0.5"), "z=0.5");
    let off = rules(&format!("implication_mode = \"off\"\n{chain}"));
    assert_eq!(cleaned(&off, "a b c"), "a=0.5 b=0.5 c=0.5");
}

#[test]
fn danbooru_tables_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rules.toml");
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("rules.toml", "alias_files = ['a.csv']\nimplication_files = ['i.csv']\n[aliases]\nb = 'mine'");
    write(
        "a.csv",
        "id,antecedent_name,consequent_name,status\r\n1,Wide Angle,wide_shot,active\r\n2,b,theirs,active\r\n3,c,d,deleted\r\n",
    );
    write("i.csv", "antecedent_name;consequent_name\nwide angle;shot\nq;r\n");
    let rules = Rules::read(&path).unwrap();
    let mut hits = RuleHits::default();
    let mut picture = tags("wide_angle b c shot");
    rules.apply(&mut picture, &mut hits);
    assert_eq!(shown(&picture), "wide_shot=0.5 mine=0.5 c=0.5");
    let used = rules.files_used(&hits);
    assert_eq!((used[0].rules, used[0].used, used[1].rules, used[1].used), (1, 1, 2, 1));
    assert_eq!(rules.report(&hits).len(), 3, "unused rules of tables are only counted");
    assert_eq!(rules.files().len(), 3);
    assert!(rules.warnings(&hits).is_empty());

    write("a.csv", "antecedent_name,consequent_name\na,b\na,c\n");
    let text = Rules::read(&path).unwrap_err().to_string();
    assert!(
        text.contains("a.csv` line 3: there is another alias for `a` in") && text.ends_with("a.csv` line 2"),
        "{text}"
    );
    write("a.csv", "antecedent_name,consequent_name\na,\n");
    let text = Rules::read(&path).unwrap_err().to_string();
    assert!(
        text.ends_with("line 2, alias: expected the name of a tag, without a comma, found \"\""),
        "{text}"
    );
    write("a.csv", "from,to\na,b\n");
    let text = Rules::read(&path).unwrap_err().to_string();
    assert!(text.ends_with("expected a column `antecedent_name`, found the columns from, to"), "{text}");
}

#[test]
fn wrong_rules_are_told_with_file_and_line() {
    assert_eq!(
        said("[aliases]\na = 'b'\nb = 'c'\nc = 'a'"),
        "`rules.toml` line 2: the aliases go in a circle: a -> b -> c -> a"
    );
    assert!(said("[aliases]\n\n'A ' = 'a'").ends_with("line 3: the aliases go in a circle: a -> a"));
    assert_eq!(
        said("[aliases]\nx = 'y'\n' X' = 'z'"),
        "`rules.toml` line 3: there is another alias for `x` in `rules.toml` line 2"
    );
    assert!(said("[replace]\na = ''").contains("line 2, replace: expected the name of a tag"));
    assert!(
        said("blacklist = [\n'a',\n'b,c']")
            .contains("line 3, blacklist: expected the name of a tag, without a comma, found \"b,c\"")
    );
    assert!(
        said("[[regex]]\n\npattern = '('\nreplacement = ''")
            .starts_with("`rules.toml` line 3, regex: regex parse error")
    );
    assert!(said("[[regex]]\npattern = 'a)|(?:b'\nreplacement = ''").contains("line 2, regex"));
    assert!(
        said("[alias]\na = 'b'").contains("line 1, column 2: unknown field `alias`, did you mean `aliases`?")
    );
    assert!(said("implication_mode = 'dropp'").contains("unknown variant `dropp`"));
    assert!(said("[[implication]]\ntag = 'a'\nimplies = 3").contains("expected a tag or a list of tags"));
    assert!(said("a = ").contains("`rules.toml` line 1"));
    assert!(matches!(Rules::read(Path::new("no/rules.toml")), Err(crate::Error::Read { .. })));
}

#[test]
fn an_empty_replacement_drops_the_tag() {
    let rules = rules("[[regex]]\npattern = 'artist_.*'\nreplacement = ''");
    assert_eq!(cleaned(&rules, "artist_name solo"), "solo=0.5");
}

#[test]
fn no_tag_vanishes_for_a_comma_or_an_unusable_replacement() {
    let rules = rules(
        r#"
        blacklist = []
        [[regex]]
        pattern = "(x?)y(.*)"
        replacement = "$1"
        [[regex]]
        pattern = "(.*)_and_(.*)"
        replacement = "$1,$2"
        [[regex]]
        pattern = "never"
        replacement = "ever"
        "#,
    );
    let mut hits = RuleHits::default();
    let mut picture = tags("hello,_world xyz yz cats_and_dogs");
    rules.apply(&mut picture, &mut hits);
    rules.apply(&mut tags("yz"), &mut hits);
    assert_eq!(shown(&picture), "hello,_world=0.5 x=0.5 yz=0.5 cats_and_dogs=0.5");
    let kept =
        |times| format!("made an empty name or one with a comma {times} times: those tags kept their names");
    assert_eq!(
        rules.warnings(&hits),
        [
            format!("`rules.toml` line 4, regex `(x?)y(.*) -> $1` {}", kept(2)),
            format!("`rules.toml` line 7, regex `(.*)_and_(.*) -> $1,$2` {}", kept(1)),
            "`rules.toml` line 10, regex `never -> ever` hit nothing".to_owned(),
        ]
    );
    assert_eq!(rules.report(&hits).iter().map(|rule| rule.hits).collect::<Vec<_>>(), [1, 0, 0]);
}

#[test]
fn a_replacement_that_names_no_group_of_its_pattern_is_an_error() {
    let with = |replacement: &str| {
        format!("[[regex]]\npattern = '(?<hue>red|blue)_(.*)'\nreplacement = '{replacement}'")
    };
    for (replacement, group) in
        [("$1_x", "1_x"), ("a$3", "3"), ("$$$hues", "hues"), ("${2}_${tone}", "tone"), ("${}", "")]
    {
        let text = said(&with(replacement));
        let names = format!("`rules.toml` line 2, regex: the replacement names the group `{group}`, which");
        assert!(text.starts_with(&names) && text.contains("`${1}_x`"), "{text}");
    }
    assert_eq!(cleaned(&rules(&with("$1-$")), "red_hat"), "red-$=0.5");
    assert_eq!(cleaned(&rules(&with("${2}_x-$hue-$$1")), "red_hat"), "hat_x-red-$1=0.5");
}

/// Implications among few names, so that chains and circles are frequent.
fn graph() -> impl Strategy<Value = Vec<(u8, u8)>> {
    prop::collection::vec((0..7_u8, 0..7_u8), 0..12)
}

fn with_graph(mode: &str, edges: &[(u8, u8)]) -> Rules {
    let edges: Vec<_> =
        edges.iter().map(|(a, b)| format!("[[implication]]\ntag = 't{a}'\nimplies = 't{b}'\n")).collect();
    rules(&format!("implication_mode = '{mode}'\n{}", edges.concat()))
}

/// Which of seven names implies which, by trying every way.
fn closure(edges: &[(u8, u8)]) -> [[bool; 7]; 7] {
    let mut implies = [[false; 7]; 7];
    edges.iter().for_each(|(a, b)| implies[usize::from(*a)][usize::from(*b)] = true);
    for through in 0..7 {
        for from in 0..7 {
            for to in 0..7 {
                implies[from][to] |= implies[from][through] && implies[through][to];
            }
        }
    }
    implies
}

fn picture(present: [bool; 7]) -> Vec<ScoredTag> {
    let names: Vec<_> = (0..7).filter(|k| present[*k]).map(|k| format!("t{k}=0.{}", 9 - k)).collect();
    tags(&names.join(" "))
}

proptest! {
    #[test]
    fn drop_general_leaves_what_nothing_special_implies(edges in graph(), present: [bool; 7]) {
        let rules = with_graph("drop-general", &edges);
        let implies = closure(&edges);
        let mut tags = picture(present);
        rules.apply(&mut tags, &mut RuleHits::default());
        let dropped = |t: usize| (0..7).any(|s| present[s] && implies[s][t] && !implies[t][s]);
        let expected: Vec<_> = (0..7).filter(|t| present[*t] && !dropped(*t)).map(|t| format!("t{t}")).collect();
        prop_assert_eq!(tags.iter().map(|tag| tag.name.clone()).collect::<Vec<_>>(), expected);
        let once = tags.clone();
        rules.apply(&mut tags, &mut RuleHits::default());
        prop_assert_eq!(tags, once);
    }

    #[test]
    fn expand_adds_all_that_is_implied_with_the_best_score(edges in graph(), present: [bool; 7]) {
        let rules = with_graph("expand", &edges);
        let implies = closure(&edges);
        let mut tags = picture(present);
        rules.apply(&mut tags, &mut RuleHits::default());
        let score = |k: usize| format!("0.{}", 9 - k).parse::<f32>().unwrap();
        for t in 0..7 {
            let reaches = |s: &usize| present[*s] && (*s == t || implies[*s].get(t).is_some_and(|is| *is));
            let best = (0..7).find(reaches).map(score);
            let found = tags.iter().find(|tag| tag.name == format!("t{t}")).map(|tag| tag.score);
            prop_assert_eq!(found, best);
        }
    }

    #[test]
    fn doubles_become_one_with_the_highest_score(names in prop::collection::vec(("[ab]{1,2}", 0.0_f32..1.0), 0..12)) {
        let mut tags: Vec<_> = names.iter().map(|(name, score)| ScoredTag { name: name.clone(), score: *score, category: None }).collect();
        let gone = merge_doubles(&mut tags);
        prop_assert_eq!(gone as usize + tags.len(), names.len());
        for (at, tag) in tags.iter().enumerate() {
            let best = names.iter().filter(|(name, _)| *name == tag.name).map(|(_, score)| *score).fold(0.0, f32::max);
            prop_assert_eq!(tag.score, best);
            prop_assert!(tags[..at].iter().all(|before| before.name != tag.name));
        }
    }

    #[test]
    fn rules_files_never_panic(text in "[a-z\\[\\]=\"'\\n ,.*?(|)$0-9]{0,80}") {
        let _ = Rules::parse(&text, Path::new("rules.toml"));
    }
}

#[test]
fn many_rules_and_long_chains_are_no_trouble() {
    // Timed by hand: a hundred thousand rules in a chain are read in a fraction of a second.
    let chain: Vec<_> = (0..100_000).map(|k| format!("t{k} = 't{}'\n", k + 1)).collect();
    let rules = rules(&format!("[aliases]\n{}", chain.concat()));
    assert_eq!(cleaned(&rules, "t99990 t3=0.25"), "t100000=0.5");
    let circle = format!("[aliases]\n{}t100000 = 't0'", chain.concat());
    assert!(said(&circle).contains("the aliases go in a circle: t0 -> t1 -> t2"));
    let dir = tempfile::tempdir().unwrap();
    let rows: Vec<_> = (0..100_000).map(|k| format!("t{k},t{}\n", k + 1)).collect();
    fs::write(dir.path().join("i.csv"), format!("antecedent_name,consequent_name\n{}", rows.concat()))
        .unwrap();
    let rules = Rules::parse("implication_files = ['i.csv']", &dir.path().join("rules.toml")).unwrap();
    assert_eq!(cleaned(&rules, "t100000 t500 t77"), "t77=0.5");
}
