"""Shared support of the cluster tests, the benchmarks and `make prove`: the product as real processes.

cluster    a development cluster: what Slurm itself says (the truth), and its faults
processes  child processes that die with us, their memory, how to kill them
product    a broker on free ports: object store, API, worker (or `broker up`), each killed and started at will
client     the REST API as a person's program uses it; waits for events, never for time
specs      pipeline specs to run
truth      what must hold afterwards: every job once in Slurm, every stored byte as it was written
kills      SIGKILL at random moments of many runs
faults     daemons frozen and restarted under running work
graphs     a thousand components and one join
timing     the ratios and latencies that the benchmarks print
"""
