"""How many small mistakes in the code that figures rest on would a test notice?

python .ci/mutants.py sample 12 20261123   make all mutants, keep 12 of each file, drawn with a seed
mutmut run --max-children 1                test those; goes on where it was stopped
python .ci/mutants.py table                what came of it, file by file, and which were not caught

Without the first line all mutants are tested. What is mutated and which tests judge it stands in
pyproject.toml under [tool.mutmut]; mutants and results lie in mutants/.
"""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path

from mutmut import __main__ as mutmut
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.stats import status_by_exit_code

LEFT_OUT = 34
"""What mutmut writes for a mutant that it skips."""
CAUGHT = {"killed", "timeout", "segfault", "suspicious"}


def results() -> dict[Path, dict[str, int | None]]:
    """Exit code of each mutant by file, None where it is not tested yet."""
    found = {}
    for path in sorted(Path("mutants/vae_astro").rglob("*.meta")):
        codes = json.loads(path.read_text("utf-8"))["exit_code_by_key"]
        if codes:
            found[path] = codes
    return found


def sample(n_per_file: int, seed: int) -> None:
    """Make the mutants and mark all but ``n_per_file`` of each file as left out."""
    set_mutant_under_test("mutant_generation")
    Path("mutants").mkdir(exist_ok=True)
    mutmut.copy_src_dir()
    mutmut.copy_also_copy_files()
    mutmut.setup_source_paths()
    mutmut.store_lines_covered_by_tests()
    mutmut.create_mutants(1)
    for path, codes in results().items():
        names = sorted(codes)
        # a file's draw does not depend on which other files there are
        kept = set(random.Random(f"{seed} {path}").sample(names, min(n_per_file, len(names))))
        record = json.loads(path.read_text("utf-8"))
        for name in names:
            tested = None if codes[name] == LEFT_OUT else codes[name]
            record["exit_code_by_key"][name] = tested if name in kept else LEFT_OUT
        path.write_text(json.dumps(record, indent=4), "utf-8")
        print(f"{path.relative_to('mutants').with_suffix('')}: {len(kept)} of {len(names)}")


def table() -> None:
    """Markdown: mutants, tested and caught of each file, the share with its binomial error."""
    print("| file | mutants | tested | caught | share |")
    print("| --- | ---: | ---: | ---: | ---: |")
    rows, survivors = [], []
    for path, codes in results().items():
        status = {name: status_by_exit_code[code] for name, code in codes.items()}
        tested = [name for name in codes if status[name] not in ("skipped", "not checked")]
        caught = sum(status[name] in CAUGHT for name in tested)
        survivors += [f"{name}: {status[name]}" for name in tested if status[name] not in CAUGHT]
        if tested:
            rows.append((len(codes), len(tested), caught))
            name = path.relative_to("mutants/vae_astro").with_suffix("")
            print(f"| `{name}` | {len(codes)} | {len(tested)} | {caught} | {_share([rows[-1]])} |")
    if rows:
        print(
            "| all | {} | {} | {} | {} |".format(*map(sum, zip(*rows, strict=True)), _share(rows))
        )
    print("\nNot caught:\n" + "\n".join(survivors))


def _share(rows: list[tuple[int, int, int]]) -> str:
    """Caught of all mutants in per cent, files weighted by their mutants, and its error."""
    total = sum(n for n, _, _ in rows)
    share = sum(n / total * caught / tested for n, tested, caught in rows)
    variance = 0.0
    for n, tested, caught in rows:
        p = caught / tested
        variance += (n / total) ** 2 * p * (1 - p) / tested * (1 - tested / n)
    return f"{100 * share:.0f} %" + (f" ± {100 * math.sqrt(variance):.0f}" if variance else "")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["sample", n_per_file, seed]:
            sample(int(n_per_file), int(seed))
        case ["table"]:
            table()
        case _:
            sys.exit(__doc__)
