"""One file per corpus that isogloss knows how to prepare; each writes `cuts.jsonl.gz`, `audio/` and `report.json` to a folder.

    debian.prepare(out, *, languages=None, packages=None, max_megabytes=None, workers=None, progress=None) -> report (dict)
    debian.plan(languages=None, *, packages=None, max_megabytes=None) -> Plan   (.describe(), .megabytes, .download_megabytes,
                                                                                .missing, .left_out, .sources, .languages)
    debian.demo_selection(max_megabytes=250) -> Plan; prepare it with
        debian.prepare(out, languages=plan.languages, packages=[source.package for source in plan.sources])
    debian.source_names() -> list of packages

    synthetic.synthesize(out, *, languages, voices=4, utterances_per_voice=50, seed=0, channels=("clean",),
                         words_per_minute=(130, 190), pitch=(30, 70), items=(3, 6), workers=1, progress=None) -> report (dict)
    synthetic.available_languages() -> list of tags; synthetic.CHANNELS: clean, room, noisy, telephone

`languages` are BCP-47 tags; `progress(stage, done, total)` is called from the calling thread, with stage "download" (bytes),
"unpack" (packages), "decode" or "synthesize" (recordings). Every function raises `DataError` with a complete message, also
where apt is absent or reaches no archive; the demo then synthesises. Show `plan(...).describe()` before preparing.
"""
