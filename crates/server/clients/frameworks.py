"""LangChain, LlamaIndex and `llm` against a running server.

usage: frameworks.py http://127.0.0.1:PORT MODEL
"""

import os
import pathlib
import subprocess
import sys
import tempfile

URL, MODEL = sys.argv[1:3]


def check_langchain():
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    chat = ChatOpenAI(base_url=f"{URL}/v1", api_key="none", model=MODEL, temperature=0, max_tokens=16)
    whole = chat.invoke("Name a colour.")
    assert whole.content and whole.usage_metadata["output_tokens"] <= 16
    assert "".join(part.content for part in chat.stream("Name a colour.")) == whole.content
    embeddings = OpenAIEmbeddings(
        base_url=f"{URL}/v1", api_key="none", model="any", check_embedding_ctx_length=False
    )
    assert len(embeddings.embed_query("a boat")) == 384


def check_llama_index():
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    like = OpenAILike(
        api_base=f"{URL}/v1", api_key="none", model=MODEL, is_chat_model=True, temperature=0, max_tokens=16
    )
    whole = like.chat([ChatMessage(role="user", content="Name a colour.")]).message.content
    parts = like.stream_chat([ChatMessage(role="user", content="Name a colour.")])
    assert whole and "".join(part.delta for part in parts) == whole


def check_llm():
    with tempfile.TemporaryDirectory() as folder:
        models = f"- model_id: everstream\n  model_name: {MODEL}\n  api_base: {URL}/v1\n"
        pathlib.Path(folder, "extra-openai-models.yaml").write_text(models)
        environment = {**os.environ, "LLM_USER_PATH": folder, "OPENAI_API_KEY": "none"}
        command = [sys.executable, "-m", "llm", "-m", "everstream", "Name a colour.", "-o", "max_tokens", "16"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and done.stdout.strip(), done


check_langchain()
check_llama_index()
check_llm()
print("frameworks: ok")
