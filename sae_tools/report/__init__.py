"""The feature report: HTML that opens offline, from a run's files and what analysis/features.py measured.

    contents.py     what a report shows, loaded from files
    panels/         one file per panel: what of it goes into the page, as arrays and JSON
    columns.py      the container of those arrays: compressed, in base64
    page.py         the page around them (templates/, assets/)
    shards.py       the same as a folder, where there are too many features for one file
    write.py        the file or folder, whole or not at all
    marker.py       how a report is known to be one
    build.py        all of it, from run directories to the report
    serve.py        a web server on loopback, for a report that is a folder

A panel is one file on each side: `panels/<name>.py` says what data it needs, `assets/panels/<name>.js` draws it. Every
number in the page comes from arrays in the containers, every text from their JSON or through the template's escaping.
"""
