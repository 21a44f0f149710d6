"""What CI systems need around a run: marks in their logs, summaries, and the contracts of those that call programs.

    running   one run, watched from outside: signals, output, the account of it
    marks     groups and annotations, in the words of a CI system
    summary   why a run failed, as one line, as JUnit's XML and as Markdown
    gitlab    the custom executor of GitLab Runner
    buildbot  steps for a Buildbot master's configuration

Each makes a Spec and runs it as `sandbox run` does; nothing here knows how a sandbox is made.
"""
