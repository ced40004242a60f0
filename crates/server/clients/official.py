"""OpenAI's client for Python against a running server: chat, streams, sessions, texts, embeddings, errors.

usage: official.py http://127.0.0.1:PORT MODEL [KEY]
"""

import sys

import openai

URL, MODEL = sys.argv[1:3]
KEY = sys.argv[3] if len(sys.argv) > 3 else "none"
client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)


def chat(messages, **more):
    return client.chat.completions.create(model=MODEL, messages=messages, temperature=0, **more)


def user(text):
    return {"role": "user", "content": text}


def check_conversation():
    messages = [{"role": "system", "content": "You are brief."}, user("Name a colour.")]
    first = chat(messages, max_tokens=16)
    assert first.choices[0].message.content and first.usage.completion_tokens <= 16
    messages += [first.choices[0].message, user("And another one.")]
    second = chat(messages, max_completion_tokens=16)
    assert second.usage.prompt_tokens_details.cached_tokens > first.usage.prompt_tokens - 1
    return messages


def check_stream(messages):
    whole = chat(messages, max_tokens=24, logprobs=True, top_logprobs=2)
    parts = chat(
        messages, max_tokens=24, stream=True, stream_options={"include_usage": True}, logprobs=True
    )
    text, tokens, usage = "", 0, None
    for part in parts:
        if part.choices:
            text += part.choices[0].delta.content or ""
            of = part.choices[0].logprobs
            tokens += len(of.content) if of and of.content else 0
        usage = part.usage or usage
    assert text == whole.choices[0].message.content, (text, whole)
    assert tokens == usage.completion_tokens == whole.usage.completion_tokens
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2


def check_session():
    session = {"session": "official"}
    said = chat([user("The password of the vault is heliotrope.")], max_tokens=8, extra_body=session)
    assert said.choices
    for i in range(12):
        chat([user(f"Tell me about the number {i}.")], max_tokens=64, extra_body=session)
    asked = chat([user("What is the password of the vault?")], max_tokens=24, extra_body=session)
    assert any("heliotrope" in block["text"] for block in asked.everstream["recalled"]), asked
    shown = client.get("/sessions/official", cast_to=dict[str, object])
    assert shown["n_tokens"] > 700, shown
    client.delete("/sessions/official", cast_to=dict[str, object])


def check_texts():
    done = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=8, logprobs=1)
    assert len(done.choices[0].logprobs.tokens) >= 8
    echo = client.completions.create(
        model=MODEL, prompt="Once upon a time", max_tokens=1, logprobs=1, echo=True
    )
    assert echo.choices[0].text.startswith("Once upon a time")
    assert echo.choices[0].logprobs.token_logprobs[0] is None
    parts = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=8, stream=True)
    assert "".join(part.choices[0].text for part in parts) == done.choices[0].text


def check_embeddings():
    def embed(**more):
        made = client.embeddings.create(model="any", input=["a ship at sea", "a boat"], **more)
        return [item.embedding for item in made.data]

    # The client asks for base64 unless it is told otherwise.
    for a, b in zip(embed(), embed(encoding_format="float"), strict=True):
        assert len(a) == 384 and max(abs(x - y) for x, y in zip(a, b, strict=True)) < 1e-6


def check_errors():
    for expected, more in [
        (openai.BadRequestError, {"messages": []}),
        (openai.BadRequestError, {"messages": [user("a")], "n": 2}),
        (openai.NotFoundError, {"messages": [user("a")], "model": "gpt-5"}),
        (openai.BadRequestError, {"messages": [user("a")], "temperature": -1}),
    ]:
        try:
            client.chat.completions.create(**{"model": MODEL, **more})
        except expected as error:
            assert error.body["message"], error
        else:
            raise AssertionError(more)
    try:
        client.get("/sessions/never", cast_to=dict[str, object])
    except openai.NotFoundError:
        pass
    else:
        raise AssertionError("a session that never was is there")
    assert MODEL in [model.id for model in client.models.list()]


check_stream(check_conversation())
check_session()
check_texts()
check_embeddings()
check_errors()
print("official client: ok")
