def write(config, workdir, name):
    return "no report yet"
