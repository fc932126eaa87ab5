//! The description of the API against the API itself.

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::running::Running;

/// What is wrong with `value`, as far as types, required fields and fields without a description go.
fn check(document: &Value, schema: &Value, value: &Value, at: &str, wrong: &mut Vec<String>) {
    if let Some(name) = schema["$ref"].as_str() {
        let pointer = name.strip_prefix('#').unwrap();
        let schema = document.pointer(pointer).unwrap_or_else(|| panic!("{at}: no schema {name}"));
        return check(document, schema, value, at, wrong);
    }
    if let Some(choices) = schema["oneOf"].as_array().or(schema["anyOf"].as_array()) {
        let fits = |choice: &Value| {
            let mut wrong = Vec::new();
            check(document, choice, value, at, &mut wrong);
            wrong.is_empty()
        };
        if !choices.iter().any(fits) {
            wrong.push(format!("{at}: {value} is none of {}", schema));
        }
        return;
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => return,
    };
    let fits = kinds.contains(&kind) || (kind == "integer" && kinds.contains(&"number"));
    if !fits {
        wrong.push(format!("{at}: {value} is {kind}, described as {kinds:?}"));
    }
    if let Some(items) = value.as_array() {
        items.iter().for_each(|item| check(document, &schema["items"], item, &format!("{at}[]"), wrong));
    }
    let Some(fields) = value.as_object() else { return };
    for required in schema["required"].as_array().into_iter().flatten() {
        if !fields.contains_key(required.as_str().unwrap()) {
            wrong.push(format!("{at}: {required} is missing in {value}"));
        }
    }
    for (name, field) in fields {
        match schema["properties"].get(name) {
            Some(schema) => check(document, schema, field, &format!("{at}.{name}"), wrong),
            None => wrong.push(format!("{at}: {name} is not described")),
        }
    }
}

#[test]
fn a_planted_difference_is_found() {
    let document = json!({ "components": { "schemas": { "A": {
        "type": "object", "required": ["a"], "properties": { "a": { "type": ["string", "null"] }, "b": { "type": "integer" } }
    } } } });
    let found = |value: Value| {
        let mut wrong = Vec::new();
        check(&document, &json!({ "$ref": "#/components/schemas/A" }), &value, "", &mut wrong);
        wrong.len()
    };
    assert_eq!(found(json!({ "a": null, "b": 1 })), 0);
    assert_eq!(found(json!({ "b": "x", "c": 1 })), 3);
    assert_eq!(found(json!([])), 1);
}

#[test]
fn answers_are_as_they_are_described() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &["--set", "handler.retry.initial=10s"]);
    let (status, document) = instance.get("/api/v1/openapi.json");
    assert_eq!(status, 200);
    assert!(document["openapi"].as_str().unwrap().starts_with("3."), "{}", document["openapi"]);
    assert_eq!(document["components"]["securitySchemes"]["token"]["scheme"], "bearer");
    let mut wrong = Vec::new();
    let mut compare = |method: &str, template: &str, path: &str, (status, answer): (u16, Value)| {
        let responses = &document["paths"][template][method]["responses"];
        let response = responses.get(status.to_string()).or(responses.get("default"));
        let response = response.unwrap_or_else(|| panic!("{method} {template} describes no {status}: {answer}"));
        let schema = &response["content"]["application/json"]["schema"];
        assert!(schema.is_object(), "{method} {template} {status} has no schema");
        let mut answer = answer;
        if status >= 400
            && let Some(fields) = answer.as_object_mut()
        {
            // What an error has beside `error` depends on its code.
            fields.retain(|name, _| name == "error" || template.ends_with('z'));
        }
        check(&document, schema, &answer, &format!("{method} {path}"), &mut wrong);
    };
    let posted = instance.post("application/json", r#"{"key":"a/b","action":"ADD","payload":{"value":"v"}}"#);
    compare("post", "/api/v1/events", "/api/v1/events", posted);
    instance.holds("a%2Fb", "ADD");
    instance.send("{\"key_base64\":\"/w==\",\"action\":\"ADD\"}\n{\"key\":\"gone\",\"action\":\"REMOVE\"}");
    instance.holds("gone", "REMOVE");
    instance.send(r#"{"key":"bad","action":"ADD","payload":{"fail":{"times":3,"how":"retry"}}}"#);
    crate::running::eventually("it waits for its retry", || {
        let (_, answer) = instance.get("/api/v1/in-flight");
        answer["in_flight"].get(0).filter(|event| event["last_error"].is_string()).map(drop)
    });
    for (template, path) in [
        ("/api/v1/keys/{key}", "/api/v1/keys/a%2Fb"),
        ("/api/v1/keys/{key}", "/api/v1/keys/%FF"),
        ("/api/v1/keys/{key}", "/api/v1/keys/gone"),
        ("/api/v1/keys/{key}", "/api/v1/keys/nobody"),
        ("/api/v1/keys", "/api/v1/keys?removed"),
        ("/api/v1/keys", "/api/v1/keys?limit=1"),
        ("/api/v1/keys", "/api/v1/keys?after=gone&limit=1"),
        ("/api/v1/keys", "/api/v1/keys?limit=0"),
        ("/api/v1/status", "/api/v1/status"),
        ("/api/v1/tasks", "/api/v1/tasks"),
        ("/api/v1/topology", "/api/v1/topology"),
        ("/api/v1/instances", "/api/v1/instances"),
        ("/api/v1/in-flight", "/api/v1/in-flight"),
        ("/livez", "/livez"),
        ("/readyz", "/readyz?verbose"),
        ("/startupz", "/startupz"),
    ] {
        compare("get", template, path, instance.get(path));
    }
    compare("post", "/api/v1/events", "/api/v1/events", instance.post("text/plain", "x"));
    for (template, path) in [
        ("/api/v1/dead-letters/retry", "/api/v1/dead-letters/retry"),
        ("/api/v1/dead-letters/retry", "/api/v1/dead-letters/retry?limit=0"),
        ("/api/v1/dead-letters/{partition}/{offset}/retry", "/api/v1/dead-letters/0/9/retry"),
    ] {
        compare("post", template, path, instance.post_to(path, "application/json", ""));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Nothing is described that is not there.
    for (template, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys().filter(|method| ["get", "post"].contains(&method.as_str())) {
            let path = template.replace(['{', '}'], "");
            let (status, text) = match method.as_str() {
                "get" => instance.get_text(&path),
                _ => {
                    let (status, answer) = instance.post_to(&path, "application/json", "");
                    (status, answer.to_string())
                }
            };
            assert!(status != 405 && !text.contains("\"not_found\""), "{method} {template}: {status} {text}");
        }
    }
}
