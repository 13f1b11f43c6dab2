def report(lines, faulty, healthy, pairs):
    pass
