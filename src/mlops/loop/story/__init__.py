"""The whole story in one command: months of a service's life in a minute, each step asserted.

    world     a folder, a real server and the clock that both read
    traffic   who asks what and when; what turned out to be true, and how late
    chapters  what happens, in order, and what must be seen of it
    page      the report

It needs no network but this machine's own.
"""
