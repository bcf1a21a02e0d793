"""Write 128 test problems of chain-sum beside this file, for lm_eval."""

import json
from pathlib import Path

from whet import get_task

rows = [{"prompt": p.prompt, "answer": p.answer} for p in get_task("chain-sum").problems("test", 128)]
Path(__file__).with_name("chain_sum.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
