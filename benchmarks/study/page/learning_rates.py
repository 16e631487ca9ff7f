"""The learning rates that were tried, and the best."""

from benchmarks.study.page.tables import Row, Section, by_name, learning_rate, markdown_table, short_name

TITLE = "Learning rates"
EXPLANATION = (
    "Runs half as long; the best of each model, in bold, is what runs made afterwards take. A model that was not "
    "tried takes the rates of the nearest: dense for what has no memory, UltraMem for what has one."
)


def section(rows: list[Row]) -> Section:
    """All runs of the sweep, the best of each model in bold, and whose best has no other beyond it."""
    models = by_name(sorted(rows, key=learning_rate))
    best = [min(runs, key=lambda row: row["validation_loss"]) for runs in models.values()]
    ends = [
        f"{short_name(row)} ({end})"
        for row, runs in zip(best, models.values(), strict=True)
        for end, at in (("lowest", 0), ("highest", -1))
        if learning_rate(row) == learning_rate(runs[at])
    ]

    def loss(row: Row) -> str:
        shown = f"**{row['validation_loss']:.3f}**" if row in best else f"{row['validation_loss']:.3f}"
        return f"{shown} at {row['tokens'] / 1e6:.1f}M tokens, then not finite" if "ended_early" in row else shown

    text = markdown_table(
        ["model", "learning rate", "tables' multiple, at first", "its horizon", "validation loss"],
        [
            [
                short_name(row),
                f"{optimizer['learning_rate']:g}",
                f"{optimizer['table_multiplier_start']:g}" if row["table_parameters"] else "",
                _horizon(row) if row["table_parameters"] else "",
                loss(row),
            ]
            for runs in models.values()
            for row in runs
            for optimizer in [row["settings"]["optimizer"]]
        ],
    )
    if ends:
        text += f"\nA better rate may lie beyond those tried of {', '.join(ends)}.\n"
    return Section(text, {})


def _horizon(row: Row) -> str:
    steps = row["settings"]["optimizer"]["table_horizon_steps"]
    return "the run" if steps is None else f"{steps / row['settings']['steps']:.0%} of the run"
