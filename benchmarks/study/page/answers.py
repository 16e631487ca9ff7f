"""The page's table of right answers to question sets, beside what guessing gets."""

from collections.abc import Sequence
from statistics import fmean

from benchmarks.study.page.tables import Row, markdown_table, short_name


def answers(groups: Sequence[Sequence[Row]]) -> str:
    """What each model answered, the mean over the seeds that were asked; nothing if none was."""
    groups = [[run for run in runs if "afterwards" in run] for runs in groups]
    groups = [runs for runs in groups if runs]
    if not groups:
        return ""
    sets = groups[0][0]["afterwards"]

    def percent(runs: Sequence[Row], name: str, field: str) -> str:
        return f"{100 * fmean(run['afterwards'][name][field] for run in runs):.1f}"

    table = markdown_table(
        ["model", *(f"{name}, % of {asked['questions']:,}" for name, asked in sets.items()), "seeds"],
        [
            ["guessing", *(percent(groups[0], name, "chance") for name in sets), ""],
            *(
                [
                    short_name(runs[0]),
                    *(f"{percent(runs, name, 'accuracy')} ± {percent(runs, name, 'error')}" for name in sets),
                    str(len(runs)),
                ]
                for runs in groups
            ),
        ],
    )
    return f"\nRight answers to question sets, by lm-eval; ± is one run's standard error over the questions.\n\n{table}"
