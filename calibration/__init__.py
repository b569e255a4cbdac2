"""Calibration and evaluation data; import `tsexport.calibration.<module>`.

opening       a file becomes a dataset, by its suffix
arrays, tables, series, windows    .npz arrays; csv and parquet; how windows are cut, and cutting them in a stream
checks        a dataset against a model's inputs
scaling, statistics    scaling by training statistics or per window; streaming statistics
metrics       task metrics and output error
synthetic, market, reference    what is used where the user gives no data
"""
