//! Templates of well-known models, and what a template can do wrong. Expected texts are what
//! `apply_chat_template` of transformers gives.

use std::time::Duration;

use serde_json::json;

use super::*;

fn template(source: &str) -> ChatTemplate {
    let config = json!({
        "chat_template": source,
        "bos_token": { "content": "<s>", "lstrip": false },
        "eos_token": "</s>",
    });
    ChatTemplate::from_config(&config).unwrap()
}

fn chat(turns: &[(&str, &str)]) -> Vec<ChatMessage> {
    turns
        .iter()
        .map(|(role, content)| ChatMessage {
            role: (*role).to_owned(),
            content: (*content).to_owned(),
        })
        .collect()
}

fn day() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_721_952_000)
}

fn render(source: &str, turns: &[(&str, &str)]) -> Result<String> {
    template(source).render_at(&chat(turns), true, day())
}

/// Mistral-7B-Instruct-v0.1.
const MISTRAL: &str = "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}";

#[test]
fn mistral_alternates_or_refuses() {
    let text = render(MISTRAL, &[("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")]);
    assert_eq!(text.unwrap(), "<s>[INST] Hi [/INST]Hello</s> [INST] Bye [/INST]");
    let error = render(MISTRAL, &[("user", "Hi"), ("user", "Hi")]).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("must alternate"), "{error}");
}

/// The beginning and the loop of Llama-3.2-Instruct's template.
const LLAMA32: &str = r#"{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"#;

#[test]
fn llama_3_2_knows_the_day() {
    assert_eq!(
        render(LLAMA32, &[("system", " Be kind. "), ("user", "Hi ")]).unwrap(),
        "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\nBe kind.\
         <|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\n"
    );
}

/// The parts of Qwen3's template that need Python's string methods, slices and namespaces.
const QWEN3: &str = r#"{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"#;

#[test]
fn qwen3_drops_old_thoughts() {
    let turns = [("user", "Hi"), ("assistant", "<think>\nhm\n</think>\n\nHello"), ("user", "Bye")];
    assert_eq!(
        render(QWEN3, &turns).unwrap(),
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n\
         <|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn blanks_loops_and_marks_are_those_of_transformers() {
    // trim_blocks takes the line break after a block, lstrip_blocks the blanks before it.
    let text = render("{% if true %}\n  {% set x = 1 %}\nA\n  {% endif %}\nB\n\n", &[("user", "")]);
    assert_eq!(text.unwrap(), "A\nB\n");
    let source = "{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}";
    assert_eq!(render(source, &[]).unwrap(), "012");
    let source = "a {%- generation %} b {%- endgeneration %} c";
    assert_eq!(render(source, &[]).unwrap(), "a b c");
    let source = "{{ messages[0] | tojson }} {{ messages | tojson(indent=2) }}";
    assert_eq!(
        render(source, &[("user", "a < b & 'c'")]).unwrap(),
        "{\"role\": \"user\", \"content\": \"a < b & 'c'\"} [\n  {\n    \"role\": \"user\",\n    \
         \"content\": \"a < b & 'c'\"\n  }\n]"
    );
}

#[test]
fn the_default_of_several_templates_is_taken() {
    let config = json!({ "chat_template": [
        { "name": "tool_use", "template": "tools" },
        { "name": "default", "template": "plain" },
    ] });
    let template = ChatTemplate::from_config(&config).unwrap();
    assert_eq!(template.render(&[], true).unwrap(), "plain");
    for none in [json!({}), json!({ "chat_template": null }), json!({ "chat_template": [] })] {
        assert!(ChatTemplate::from_config(&none).is_none(), "{none}");
    }
}

#[test]
fn broken_and_endless_templates_are_errors() {
    for source in [
        "{% for %}",
        "{{ messages[0].nothing.more }}",
        "{{ nothing() }}",
        "{% for a in range(10000) %}{% for b in range(10000) %}{% for c in range(10000) %}x{% endfor %}{% endfor %}{% endfor %}",
    ] {
        let error = render(source, &[("user", "x")]).unwrap_err();
        assert_eq!(error.exit_code(), 1, "{source}");
        assert!(error.to_string().contains("template"), "{error}");
    }
}
