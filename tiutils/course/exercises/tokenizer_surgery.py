"""Checks for 02_tokenizer_surgery."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tiutils.course.exercises import attempt, check_cases
from tiutils.course.exercises.tensors import check_tensor
from tiutils.io import embeddings


def check_nearest(function: Callable[[Tensor, Tensor, int], Any]) -> str:
    """Which rows have the most similar direction to a vector's? Length does not count."""
    vector, table = torch.tensor([1.0, 1.0]), torch.tensor([[9.0, 0.0], [0.2, 0.2], [-3.0, -3.0]])
    cases = [
        ((vector, table, 1), [1], "row 1 has exactly the same direction, however short it is"),
        ((vector, table, 3), [1, 0, 2], "the nearest first, the opposite one last"),
        ((-5 * vector, table, 2), [2, 0], "a long vector has the same neighbors as a short one"),
        ((vector, table[:1], 1), [0], "a table may have a single row"),
    ]
    praise = "right: by direction alone, the nearest first"
    return check_cases(
        function, cases, praise, lambda answer, rows: list(map(float, answer)) == rows
    )


def check_look_up(function: Callable[..., Any]) -> str:
    """Vectors of ids, from a frozen table or from the rows beside it; the gradient goes to the rows alone."""
    draw = torch.Generator().manual_seed(0)
    for num_vectors in (1, 2):
        ids = torch.tensor([[0, 8, 9, 3], [1, 9, 5, 8 + num_vectors]])
        table, rows = torch.randn(9, 4, generator=draw), torch.randn(num_vectors, 4, generator=draw)
        kept, rows = table.clone(), rows.requires_grad_()
        given = (ids.clone(), table, rows, 9)
        answer, complaint = attempt(lambda given=given: function(*given))  # not copies of the rows
        expected = torch.cat([table, rows.detach()])[ids]
        reason = "id 9 is the first new one and selects row 0; ids below select a row of the table"
        if not torch.equal(table, kept):
            return "not quite: the table has changed, but it is frozen"
        complaint = complaint or check_tensor(answer, expected, reason)
        if complaint:
            return complaint
        if not answer.requires_grad:
            return "not quite: no gradient reaches the rows, so they could not learn"
        answer.sum().backward()
        times = torch.stack([(ids == 9 + n).sum() for n in range(num_vectors)])
        if rows.grad is None or not torch.equal(rows.grad, times[:, None].expand(-1, 4).float()):
            return (
                "not quite: every place where the word stands must add to the gradient of its row"
            )
    return "right: the table is only read, and the rows get the whole gradient"


def check_word_file(save: Callable[..., Any], load: Callable[..., Any]) -> str:
    """A word to a file and back: one tensor, named like the word, in the form that diffusers reads."""
    rows = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        path, ours = Path(folder, "mine.safetensors"), Path(folder, "ours.safetensors")
        _, complaint = attempt(save, path, "<my-toy>", rows)
        if not path.is_file():
            return complaint or "not quite: there is no file at the path"
        found, complaint = attempt(load_file, path)
        if complaint:
            return complaint.replace("your function", "reading your file")
        if list(found) != ["<my-toy>"] or not torch.equal(found["<my-toy>"], rows):
            return f"not quite: the file holds {sorted(found)}, expected the rows under the name '<my-toy>'"
        embeddings.write(ours, embeddings.LearnedEmbedding("<other>", rows[:1].numpy()))
        for file, token, expected in ((path, "<my-toy>", rows), (ours, "<other>", rows[:1])):
            answer, complaint = attempt(load, file)
            if complaint:
                return complaint
            if not isinstance(answer, tuple | list) or len(answer) != 2 or answer[0] != token:
                return f"not quite: loading must give the pair {token!r}, rows"
            complaint = check_tensor(answer[1], expected, "the rows are not those in the file")
            if complaint:
                return complaint
    return "right: what was saved is what is loaded, and diffusers reads it, too"


def check_write_out(function: Callable[[str, str, int], str]) -> str:
    """A word of several vectors stands for several tokens: all are written out wherever it occurs."""
    cases = [
        (("a <toy> in snow", "<toy>", 1), "a <toy> in snow", "one vector, one token"),
        (("a <toy> in snow", "<toy>", 2), "a <toy> <toy>_1 in snow", "the second token is <toy>_1"),
        (("<toy>, <toy>", "<toy>", 3), "<toy> <toy>_1 <toy>_2, <toy> <toy>_1 <toy>_2",
         "wherever the word occurs"),
        (("a dog", "<toy>", 3), "a dog", "without the word, nothing changes"),
    ]  # fmt: skip
    praise = "right: one word to you, several tokens to the model"
    return check_cases(function, cases, praise)
