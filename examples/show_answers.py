"""Print the prompts of a batch file beside their answers: show_answers.py IN.jsonl OUT.jsonl"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.text import Text


def main(questions_path: str, answers_path: str) -> None:
    """Match by custom_id, print in the order of the questions."""
    answers = {}
    for line in Path(answers_path).read_text().splitlines():
        entry = json.loads(line)
        answers[entry["custom_id"]] = entry
    console = Console()
    for line in Path(questions_path).read_text().splitlines():
        question = json.loads(line)
        entry = answers[question["custom_id"]]
        if entry.get("error"):
            text, style = entry["error"]["message"], "red"
        else:
            choice = entry["response"]["body"]["choices"][0]
            text, style = choice["message"]["content"].strip(), "cyan"
        title = Text(question["body"]["messages"][0]["content"])
        # What a model writes in brackets is no markup.
        console.print(Panel(Text(text), title=title, border_style=style))


if __name__ == "__main__":
    main(*sys.argv[1:])
