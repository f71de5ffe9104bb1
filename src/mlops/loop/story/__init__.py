"""The whole story in one command: months of a service's life in a minute, each step asserted.

    world     a folder, a real server and the clock that both read
    traffic   who asks what and when; what turned out to be true, and how late
    tale      what is known while the story goes on; how days pass
    noticed   the chapters in which things go wrong, and are noticed
    improved  those in which the model is replaced, and a bad one taken back
    chapters  all of them, in order
    page      the report

It needs no network but this machine's own.
"""
