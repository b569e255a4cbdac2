"""Timing, statistics, machine fingerprint, latency tables and verdicts; import `tsexport.bench.<module>`.

fingerprint  what machine this is
measure      latency, throughput, load time and memory of one artifact, in fresh processes
race         several artifacts side by side, in interleaved blocks, with ratios and intervals
tables       the published figures, as frozen rows and as budgets
verdicts     budgets judged by measurements
records      what one machine measured, from and to `measurements/<machine_id>.json`
rows         measurements and verdicts as rows of text for terminals and reports
"""
