"""A conversation of 200 turns in a session, through OpenAI's client: the time of each turn, and whether what
was said in the third and fourth is recalled in the last; then once more after the server was killed and started.

usage: long_conversation.py PROGRAM MODEL DATA_FOLDER [TURNS]
"""

import json
import pathlib
import statistics
import subprocess
import sys
import time

import openai

PROGRAM, MODEL, DATA = sys.argv[1:4]
TURNS = int(sys.argv[4]) if len(sys.argv) > 4 else 200
# Said in the turns 3 and 4, asked for at the end and after the kill: a question that was asked before would
# be recalled itself.
FACTS = {
    3: "Remember this: the password of the vault is heliotrope.",
    4: "Remember this too: the captain of the ferry is called Ottilie Brandt.",
}


def start():
    command = [PROGRAM, "serve", "--model", MODEL, "--addr", "127.0.0.1:0", "--data-dir", DATA]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in server.stderr:
        if " at http://" in line:
            url = line.split(" at ")[1].split(",")[0].removesuffix("/v1").strip()
            return server, openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600)
    raise SystemExit("the server did not start")


def ask(client, text, n=240, temperature=0.8):
    begin = time.monotonic()
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": text}],
        max_tokens=n,
        temperature=temperature,
        extra_body={"session": "long"},
    )
    return answer, time.monotonic() - begin


def resident(server):
    status = pathlib.Path(f"/proc/{server.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def check_recall(client, question, word):
    answer, seconds = ask(client, question, 32, 0)
    text = answer.choices[0].message.content
    return {
        "recalled": any(word in block["text"] for block in answer.everstream["recalled"]),
        "answered": word in text,
        "answer": text,
        "seconds": seconds,
    }


TOPICS = ["ships", "bread", "glass", "rivers", "clocks", "maps", "salt", "bridges", "wool", "stars"]
LONGER = (
    "Write about {topic} in the year {year}: how they were made, who used them, what they cost, and what people "
    "said of them. Do not repeat what you have told me before about {other}, and begin with something that most "
    "people do not know. "
)
server, client = start()
times, sizes, tokens = [], [], 0
for turn in range(1, TURNS + 1):
    topic, other = TOPICS[turn % 10], TOPICS[(turn * 7) % 10]
    text = FACTS.get(turn) or LONGER.format(topic=topic, year=1400 + turn, other=other) * 3
    answer, seconds = ask(client, text)
    times.append((seconds, answer.usage.completion_tokens))
    sizes.append(resident(server))
    tokens = answer.usage.total_tokens
before = check_recall(client, "What is the password of the vault?", "heliotrope")
server.kill()
server.wait()
begin = time.monotonic()
server, client = start()
started = time.monotonic() - begin
after = check_recall(client, "What is the captain of the ferry called?", "Ottilie")
server.terminate()
server.wait()

# A turn's time is that of its answer, which is shorter or longer.
per_token = [seconds / n for seconds, n in times if n > 100]
tenth = max(1, len(per_token) // 10)
print(
    json.dumps(
        {
            "turns": TURNS,
            "tokens": tokens,
            "ms_per_token_first_tenth": 1000 * statistics.median(per_token[:tenth]),
            "ms_per_token_last_tenth": 1000 * statistics.median(per_token[-tenth:]),
            "seconds_per_turn_median": statistics.median(seconds for seconds, _ in times),
            "resident_mb": [sizes[0], sizes[len(sizes) // 2], sizes[-1]],
            "recall_at_the_end": before,
            "seconds_to_start_after_kill": started,
            "recall_after_kill": after,
        },
        indent=1,
    )
)
