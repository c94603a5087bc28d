#!/usr/bin/env bash
# A Jupyter notebook assigns a name twice, and between the two defines a function that reads it. marimo allows one
# assignment per name, so its converter renames the second, and the function goes on reading the first. You might expect a
# refusal or a warning: the notebook converts, `marimo check` finds nothing, and it runs to the end with another result.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet marimo==0.25.2 nbformat==5.11.1 nbclient==0.11.0 ipykernel==7.4.0
cd "$folder"
cat > page.py <<'PYTHON'
import nbformat
from nbclient import NotebookClient

sources = ["seed = 0", "def picture():\n    return f'a picture of seed {seed}'", "seed = 7", "print(picture())"]
page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
nbformat.write(page, "page.ipynb")
NotebookClient(page).execute()
print(page.cells[-1].outputs[0].text, end="")
PYTHON
in_jupyter=$(venv/bin/python page.py 2> log)
venv/bin/python -m marimo convert page.ipynb -o converted.py > log 2>&1
in_marimo=$(venv/bin/python converted.py)
said=$(venv/bin/python -m marimo check converted.py 2>&1)
venv/bin/python -m pip list 2> log | grep -E "^(marimo|nbclient|ipykernel) "
echo "Jupyter: $in_jupyter"
echo "marimo:  $in_marimo"
echo "marimo check: '$said'"
grep -n "seed" converted.py
test "$in_jupyter" = "a picture of seed 7" && test "$in_marimo" = "a picture of seed 0" && test -z "$said"
echo "as described: the converted page draws with the seed that was replaced"
