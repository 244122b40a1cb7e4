"""The table over several experiments: for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.text import Text

from more.evaluation.experiments import SHARE, Experiments
from more.evaluation.score_result import percent
from more.evaluation.words import route_lines
from more.progress import PlainTable


def experiments_table(found: Experiments, width: int = 80) -> Group:
    """Rich tables of the experiments and of their runs, with the columns' routes between.

    Args:
        found: from `read_experiments`.
        width: characters in a line; what does not fit goes on in another table below.
    """
    return Group(
        *_tables(found, _experiments(found), 1, width), Text(_legend(found)),
        *(Text(f"{column}: {_route(found, column)}") for column in found.columns),
        *map(Text, _meanings(found)),
        *(Text(f"warning: {line}", style="yellow") for line in found.warnings()),
        Text(), *_tables(found, _runs(found), 3, width))


def experiments_markdown(found: Experiments) -> str:
    """The same as text for a page: a table, a line for every column, the runs in `<details>`.

    Args:
        found: from `read_experiments`.
    """
    lines = [*_rows(found, _experiments(found), 1), "", _legend(found), ""]
    lines += [f"- `{column}`: {_route(found, column)}" for column in found.columns]
    lines += [f"- {line}" for line in _meanings(found)]
    lines += [f"- **Warning:** {line}" for line in found.warnings()]
    return "\n".join([*lines, "", "<details><summary>Every run</summary>", "",
                      *_rows(found, _runs(found), 3), "", "</details>"])


def _experiments(found: Experiments) -> list[list[str]]:
    """Titles, then one row an experiment."""
    return [["experiment", *found.columns, "runs"],
            *([name, *(found.cell(name, column).text() for column in found.columns),
               str(len(runs))] for name, runs in found.experiments.items())]


def _runs(found: Experiments) -> list[list[str]]:
    """Titles, then one row a run, with a digit more, so that means and spreads can be checked."""
    return [["experiment", "run", "seed", *found.columns],
            *([name, str(run.path), "–" if run.seed is None else str(run.seed),
               *(percent(found.value(run, column)) for column in found.columns)]
              for name, runs in found.experiments.items() for run in runs)]


def _legend(found: Experiments) -> str:
    """What a cell says."""
    what = "mIoU" if found.classes is None else f"Mean IoU over {', '.join(found.classes)}"
    several = any(len(runs) > 1 for runs in found.experiments.values())
    return f"{what}, in per cent" + (
        ": mean over the runs ± sample standard deviation; (n of m): n of m runs have the score."
        if several else ".")


def _route(found: Experiments, column: str) -> str:
    """How the sets of a column were made; of a share, also what it is a share of."""
    routes = found.routes(column)
    text = next(iter(routes)) if len(routes) == 1 else "; ".join(
        f"{', '.join(names)}: {route}" for route, names in routes.items())
    return text + ("; in per cent of the same set from a folder trained on true masks, run by run"
                   if column.endswith(SHARE) else "")


def _meanings(found: Experiments) -> list[str]:
    """What the letters of the columns' routes mean."""
    return route_lines(route for column in found.columns for route in found.routes(column))


def _tables(found: Experiments, rows: Sequence[Sequence[str]], texts: int, width: int
            ) -> list[PlainTable | Text]:
    """Rich tables of as many columns as fit, each led by the first `texts` columns, which are text,
    and ended by an empty line."""
    titles = [title.replace(":", ":\n", 1).replace("@", "\n@").replace(SHARE, f"\n{SHARE[1:]}")
              if title in found.columns else title for title in rows[0]]
    needs = [2 + max(len(line) for cell in column for line in cell.split("\n"))
             for column in zip(titles, *rows[1:], strict=True)]
    groups: list[list[int]] = [[]]
    for number in range(texts, len(titles)):
        if groups[-1] and sum(needs[k] for k in (*range(texts), *groups[-1], number)) > width:
            groups.append([])
        groups[-1].append(number)
    return [part for group in groups for part in (
        _table(titles, rows[1:], texts, [*range(texts), *group]), Text())]


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], texts: int,
           shown: Sequence[int]) -> PlainTable:
    table = PlainTable(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for number in shown:
        table.add_column(Text(titles[number]), overflow="fold",
                         justify="left" if number < texts else "right")
    for row in rows:
        table.add_row(*(Text(row[number]) for number in shown))
    return table


def _rows(found: Experiments, rows: Sequence[Sequence[str]], texts: int) -> list[str]:
    """The lines of a GitHub table."""
    rule = ["---"] * texts + ["---:"] * (len(rows[0]) - texts)
    titles = [f"`{title}`" if title in found.columns else title for title in rows[0]]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
            for row in (titles, rule, *rows[1:])]
