#!/usr/bin/env bash
# python-gdcm 3.2.6 (PyPI), and with it pydicom 3.0.2, cannot be imported where the folder in which Python was started
# holds one called "dl", as one for deep learning or for downloads may be, be it empty. gdcm first asks for `dl`, a module
# of Python 2 that no Python 3 has; any folder is a namespace package of its name, and what gdcm then looks for in it,
# RTLD_NOW, is not there. pydicom imports every decoder that is installed, so it ends with the same AttributeError; nibabel
# catches it and does without, after which importing pydicom says "partially initialized module 'pydicom' has no attribute
# 'uid' (most likely due to a circular import)", which no DICOM and no folder is named in.
# Seen with python-gdcm 3.2.6, pydicom 3.0.2, nibabel 5.4.2 and CPython 3.11. Ends with status 0 while this is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet python-gdcm==3.2.6 pydicom==3.0.2 nibabel==5.4.2 numpy==2.4.6
mkdir -p "$folder/plain/models" "$folder/with_dl/dl"
"$folder/venv/bin/pip" list --disable-pip-version-check 2>/dev/null | grep -iE "^(python-gdcm|pydicom|nibabel|numpy) "

last_line() { # of what Python says when it runs $2 in the folder $1
  (cd "$folder/$1" && "$folder/venv/bin/python" -c "$2; print('imported')" 2>&1 || true) | tail -n 1
}

as_seen=0
for code in "import gdcm" "import pydicom" "import nibabel, pydicom"; do
  plain=$(last_line plain "$code")
  beside=$(last_line with_dl "$code")
  echo "$code: 'imported' expected; beside a folder called models: $plain; beside one called dl: $beside"
  [[ "$plain" == imported && "$beside" == AttributeError:* ]] || as_seen=1
done
exit "$as_seen"
