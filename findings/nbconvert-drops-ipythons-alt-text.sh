#!/usr/bin/env bash
# IPython's Image(..., alt="…") is how to describe a picture, and it stores the text with the output. nbconvert's `classic`
# and `basic` templates read it there. The default template does not: the exported page says "No description has been
# provided for this image", and nbconvert warns that the text is missing. A text/html output with <img alt="…"> keeps its
# description in all three.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet nbconvert==7.17.2 nbformat==5.11.1 nbclient==0.11.0 ipykernel==7.4.0 \
    ipython==9.18.1 pillow==13.0.0
"$folder/venv/bin/python" - <<'PYTHON'
import re
from importlib.metadata import version

import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter

picture = """import base64, io
from IPython.display import HTML, Image
from PIL import Image as Pillow
file = io.BytesIO()
Pillow.new("RGB", (8, 8), "red").save(file, "PNG")
"""
as_image = picture + "Image(data=file.getvalue(), alt='a red square')"
as_html = picture + "HTML('<img alt=\"a red square\" src=\"data:image/png;base64,%s\">' % base64.b64encode(file.getvalue()).decode())"
page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in (as_image, as_html)])
NotebookClient(page).execute()
print(*(f"{name} {version(name)}" for name in ("nbconvert", "ipython", "nbclient")), sep=", ")
print("stored with the output:", page.cells[0].outputs[0].metadata)
seen = {}
for template in (HTMLExporter().template_name, "classic", "basic"):
    html, _ = HTMLExporter(template_name=template).from_notebook_node(page)
    seen[template] = re.findall(r'<img[^>]*?\balt="([^"]*)"', html)
    print(f"{template}: {seen[template]}")
told = "a red square"
assert page.cells[0].outputs[0].metadata == {"image/png": {"alt": told}}
assert seen == {"lab": ["No description has been provided for this image", told], "classic": [told] * 2, "basic": [told] * 2}, seen
print("as described: the default template alone drops the description")
PYTHON
