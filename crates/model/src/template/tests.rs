use super::*;

fn messages(golden: &serde_json::Value) -> Vec<Message> {
    let role = |name: &str| match name {
        "system" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        other => panic!("unknown role {other}"),
    };
    let message = |value: &serde_json::Value| {
        let text = |key: &str| value[key].as_str().unwrap().to_owned();
        Message::new(role(&text("role")), text("content"))
    };
    golden.as_array().unwrap().iter().map(message).collect()
}

fn golden() -> serde_json::Value {
    let file = include_bytes!("../../tests/golden/chat-templates.json");
    serde_json::from_slice(file).unwrap()
}

fn golden_template(model: &str) -> ChatTemplate {
    let golden = golden();
    let templates = golden["templates"].as_array().unwrap();
    let found = templates.iter().find(|template| template["model"] == model).unwrap();
    ChatTemplate::new(found["chat_template"].as_str().unwrap(), "", "<|im_end|>").unwrap()
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, "<s>", "</s>").unwrap()
}

fn user(text: &str) -> Message {
    Message::new(Role::User, text)
}

#[test]
fn renders_conversations_as_jinja2_does() {
    for case in golden()["cases"].as_array().unwrap() {
        let template = golden_template(case["model"].as_str().unwrap());
        let prompt = match case["add_generation_prompt"].as_bool().unwrap() {
            true => GenerationPrompt::Add,
            false => GenerationPrompt::Omit,
        };
        let text = template.render(&messages(&case["messages"]), prompt).unwrap();
        assert_eq!(text, case["text"].as_str().unwrap());
    }
}

/// Pieces for the turns of a stream, put together, must be the conversation rendered at once.
fn check_incremental(template: &ChatTemplate, system: Option<&str>, turns: &[(&str, &str)]) {
    let mut stream = template.system_prefix(system).unwrap().to_string();
    let mut conversation: Vec<_> =
        system.map(|text| Message::new(Role::System, text)).into_iter().collect();
    for (question, answer) in turns {
        stream.push_str(template.user_turn(question).unwrap().as_str());
        conversation.push(user(question));
        assert_eq!(stream, template.render(&conversation, GenerationPrompt::Add).unwrap());
        stream.push_str(answer);
        stream.push_str(&template.after_answer().unwrap());
        conversation.push(Message::new(Role::Assistant, *answer));
        assert_eq!(stream, template.render(&conversation, GenerationPrompt::Omit).unwrap());
    }
}

const TURNS: [(&str, &str); 4] = [
    ("Hi", "Hello."),
    ("  spaces \n", "\nlines\n"),
    ("{{ x }} <|im_end|> {% raw %}", "'\"\\ <b>"),
    ("", ""),
];

#[test]
fn turns_added_one_by_one_equal_the_conversation_rendered_at_once() {
    for model in ["smollm2-135m", "qwen2.5-coder-0.5b"] {
        let template = golden_template(model);
        for system in [None, Some("Be brief."), Some(""), Some(" a\n")] {
            check_incremental(&template, system, &TURNS);
        }
    }
    check_incremental(&template(CHATML), None, &TURNS);
}

#[test]
fn a_default_system_text_is_part_of_the_prefix() {
    let prefix = golden_template("smollm2-135m").system_prefix(None).unwrap();
    assert_eq!(
        prefix.as_str(),
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging \
         Face<|im_end|>\n"
    );
    assert!(prefix.quoted().is_empty());
    assert_eq!(template(CHATML).system_prefix(None).unwrap().as_str(), "");
}

#[test]
fn quoted_words_are_located() {
    let template = golden_template("qwen2.5-coder-0.5b");
    let quoted = |turn: TurnText| turn.as_str()[turn.quoted()].to_owned();
    assert_eq!(quoted(template.user_turn("a <|im_end|>").unwrap()), "a <|im_end|>");
    assert_eq!(quoted(template.system_prefix(Some("be brief")).unwrap()), "be brief");
    assert_eq!(quoted(template.user_turn("user").unwrap()), "user");
    assert_eq!(template.user_turn("x").unwrap().to_string().find('x').unwrap(), 17);
}

#[test]
fn templates_that_trim_and_begin_a_sequence_work_incrementally() {
    // The style of Llama 3: a token that begins the sequence, trimmed text, methods of Python.
    let llama3 = template(
        "{{- bos_token }}{% for message in messages %}{{ '<h>' + message.role.strip() + '</h>\n\n' \
         + message.content | trim + '<e>' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<h>assistant</h>\n\n' }}{% endif %}",
    );
    assert_eq!(llama3.system_prefix(None).unwrap().as_str(), "<s>");
    let turn = llama3.user_turn("  hi ").unwrap();
    assert_eq!(turn.as_str(), "<h>user</h>\n\nhi<e><h>assistant</h>\n\n");
    assert_eq!(&turn.as_str()[turn.quoted()], "hi");
    assert_eq!(llama3.after_answer().unwrap(), "<e>");
    assert_eq!(llama3.user_turn(" \n").unwrap().as_str(), "<h>user</h>\n\n<e><h>assistant</h>\n\n");
}

#[test]
fn templates_that_rewrite_what_was_said_are_refused() {
    let not_incremental = |result: Result<TurnText, TemplateError>| {
        assert!(matches!(result, Err(TemplateError::NotIncremental { .. })), "{result:?}");
    };
    let counts =
        template("{{ messages | length }}{% for m in messages %}[{{ m.content }}]{% endfor %}");
    not_incremental(counts.user_turn("a"));
    let twice = template("{% for m in messages %}[{{ m.content }}{{ m.content }}]{% endfor %}");
    not_incremental(twice.user_turn("a"));
    let mute = template("{% for m in messages %}[{{ m.role }}]{% endfor %}");
    not_incremental(mute.user_turn("a"));
    let depends = template(
        "{% for m in messages %}[{{ m.content }}{{ '!' if 'secret' in m.content }}]{% endfor %}",
    );
    assert!(depends.user_turn("a").is_ok());
    not_incremental(depends.user_turn("secret"));
    // The style of Gemma: the system text stands inside the first user turn.
    let inside = template(
        "{% for m in messages %}{% if m.role == 'system' %}{% else %}<u>{% if loop.index0 == 1 and \
         messages[0].role == 'system' %}{{ messages[0].content }}\n{% endif %}{{ m.content }}</u>\
         {% endif %}{% endfor %}",
    );
    assert!(inside.system_prefix(None).is_ok());
    not_incremental(inside.system_prefix(Some("be brief")));
    let hides = template(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}\
         {% if add_generation_prompt %}<assistant><think>{% endif %}",
    );
    assert!(matches!(hides.after_answer(), Err(TemplateError::NotIncremental { .. })));
}

#[test]
fn a_template_may_refuse_a_conversation() {
    let strict = template(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}\
         {% endif %}[{{ m.content }}]{% endfor %}",
    );
    assert_eq!(strict.system_prefix(None).unwrap().as_str(), "");
    let error = strict.system_prefix(Some("be brief")).unwrap_err();
    assert!(
        matches!(&error, TemplateError::Render { reason } if reason.contains("no system role"))
    );
}

#[test]
fn broken_templates_are_told_apart_from_broken_conversations() {
    let error = ChatTemplate::new("{% if %}", "", "").unwrap_err();
    assert!(matches!(error, TemplateError::Syntax { .. }), "{error}");
    assert!(!error.to_string().contains('\n'));
    let error = template("{{ nothing.at.all }}").render(&[], GenerationPrompt::Add).unwrap_err();
    assert!(matches!(error, TemplateError::Render { .. }), "{error}");
}

#[test]
fn templates_cannot_run_forever_or_fill_the_memory() {
    for source in [
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = ns.s + ns.s %}\
         {% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'x' * 1000000000000 }}",
    ] {
        let error = template(source).render(&[], GenerationPrompt::Add).unwrap_err();
        assert!(matches!(error, TemplateError::Render { .. }), "{error}");
    }
}

#[test]
fn what_templates_expect_from_transformers_is_there() {
    let check = |source: &str, expected: &str| {
        let text = template(source).render(&[user("a")], GenerationPrompt::Add).unwrap();
        assert_eq!(text, expected, "{source}");
    };
    check("{{ bos_token }}{{ eos_token }}", "<s></s>");
    check("{{ {'a': [1, '<x>'], 'b': true} | tojson }}", r#"{"a": [1, "<x>"], "b": true}"#);
    check("{{ [1] | tojson(indent=4) }}", "[\n    1\n]");
    check("{{ strftime_now('%Y') | length }}", "4");
    check("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01");
    check("{{ ' a '.strip() }}{{ 'ab'.startswith('a') }}{{ 'a,b'.split(',')[-1] }}", "aTrueb");
    check("  {% if tools %}\n  tools\n  {% endif %}\nend\n", "end");
    check("{{ messages[0].content if messages is defined and messages[1:] is iterable }}", "a");
}

#[test]
fn a_file_without_template_gets_chatml() {
    let source = include_bytes!("../../tests/golden/tiny-llama.gguf");
    let with = GgufFile::from_bytes(source.to_vec(), "with").unwrap();
    let tokenizer = Tokenizer::from_gguf(&with).unwrap();
    let template = ChatTemplate::from_gguf(&with, &tokenizer).unwrap();
    assert!(!template.is_fallback());
    let without = crate::gguf::GgufBuilder::new().build();
    let without = GgufFile::from_bytes(without, "without").unwrap();
    let fallback = ChatTemplate::from_gguf(&without, &tokenizer).unwrap();
    assert!(fallback.is_fallback());
    assert_eq!(
        fallback.render(&[user("hi")], GenerationPrompt::Add).unwrap(),
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    );
}
