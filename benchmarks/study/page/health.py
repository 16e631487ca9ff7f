"""The page's table of the memories' health: how much of their tables is read, how evenly, and what comes out."""

from collections.abc import Sequence

from benchmarks.study.page.tables import Row, markdown_table, mean_health, short_name


def health(groups: Sequence[Sequence[Row]]) -> str:
    """Each model's memories in the last validation, the mean over them and over seeds; nothing if none has any."""
    groups = [runs for runs in groups if runs[0]["memory"]]
    if not groups:
        return ""
    table = markdown_table(
        ["memory", "memories", "rows read", "of the reads, by the 1% most read", "KL from even reads, nats", "outputs"],
        [
            [
                short_name(runs[0]),
                str(len(runs[0]["memory"])),
                f"{mean_health(runs, 'rows_read'):.0%}",
                f"{mean_health(runs, 'top_percent_share'):.0%}",
                f"{mean_health(runs, 'kl_from_uniform'):.2f}",
                f"{mean_health(runs, 'output_std'):.2f}",
            ]
            for runs in groups
        ],
    )
    return (
        "\nThe memories' health in the last validation, the mean over memories and seeds; outputs: their standard "
        f"deviation.\n\n{table}"
    )
