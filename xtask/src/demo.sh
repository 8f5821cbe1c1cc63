#!/bin/sh
# Shows what a workload sees in its microVM.
set -eu

echo "kernel   $(uname -sr)"
sed -n 's/^PRETTY_NAME="\(.*\)"/image    \1/p' /etc/os-release
sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo |
	while read -r kib; do echo "memory   $((kib / 1024)) MiB"; done
echo "CPU      $(nproc) x $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)"

python3 - <<'PYTHON'
# The first digits of pi, by Gibbons' spigot algorithm.
def digits(count):
    q, r, t, k, n, l = 1, 0, 1, 1, 3, 3
    while count:
        if 4 * q + r - t < n * t:
            yield n
            count -= 1
            q, r, n = 10 * q, 10 * (r - n * t), 10 * (3 * q + r) // t - 10 * n
        else:
            q, r, t, k, n, l = (q * k, (2 * q + r) * l, t * l, k + 1,
                                (q * (7 * k + 2) + r * l) // (t * l), l + 2)

text = "".join(map(str, digits(50)))
print("python   pi = " + text[0] + "." + text[1:])
PYTHON

redis-server --port 0 --unixsocket /tmp/redis.sock --save '' --daemonize yes >/dev/null
tries=0
until redis-cli -s /tmp/redis.sock ping >/dev/null 2>&1; do
	tries=$((tries + 1))
	if [ "$tries" -gt 100 ]; then
		echo 'redis    did not start' >&2
		exit 1
	fi
	sleep 0.1
done
# -q rewrites its line with carriage returns; the last piece is the result.
redis-benchmark -s /tmp/redis.sock -t set -n 2000 -c 4 -q |
	tr '\r' '\n' | sed -n 's/^\(SET: .*requests per second.*\)/redis    \1/p' | tail -n 1
redis-cli -s /tmp/redis.sock shutdown nosave >/dev/null 2>&1 || true
