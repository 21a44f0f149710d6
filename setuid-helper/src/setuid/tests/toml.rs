use super::*;

#[test]
fn what_is_used_is_understood() {
    let text =
        b"# c\nimages = \"any\" # c\n\nd=[\"/a\", \"/b#\",]\r\n\tg = [ 1,2 ]\nt = false\n[limits]\nn = 10\ne = []";
    let entries = parse(text).unwrap();
    let values: Vec<_> = entries.iter().map(|(key, value, line)| (key.as_str(), value, *line)).collect();
    assert_eq!(values[0], ("images", &Value::Text(b"any"), 2));
    assert_eq!(values[1], ("d", &Value::Texts(vec![b"/a", b"/b#"]), 4));
    assert_eq!(values[2], ("g", &Value::Numbers(vec![1, 2]), 5));
    assert_eq!(values[3], ("t", &Value::Truth(false), 6));
    assert_eq!(values[4], ("limits.n", &Value::Number(10), 8));
    assert_eq!(values[5], ("limits.e", &Value::Numbers(vec![]), 9));
}

#[test]
fn anything_else_is_refused() {
    for text in [
        "a",
        "a =",
        "= 1",
        "a = 1 2",
        "a = \"x",
        "a = \"\\n\"",
        "a = 'x'",
        "a = 01",
        "a = -1",
        "a = 1.5",
        "a = 1_0",
        "a = truely",
        "a = [1, \"x\"]",
        "a = [[1]]",
        "a = [,]",
        "a = [1",
        "a.b = 1",
        "\"a\" = 1",
        "A = 1",
        "[a",
        "[[a]]",
        "a = 1\na = 2",
        "[t]\na = 1\n[t]",
        "a = 9223372036854775808",
        "a = \"\x07\"",
        "a = \"\"\"x\"\"\"",
        "[t] x",
        "a = 1\r",
        "t = 1\n[t]",
    ] {
        assert!(parse(text.as_bytes()).is_err(), "{text}");
    }
    assert_eq!(parse(b"a = 1\n\xff"), Err(2));
}
