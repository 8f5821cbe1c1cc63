#!/bin/sh
# The init of the guests that block and net are measured in. Its arguments are what to
# do, and for how many seconds each.
set -u

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
export HOME=/tmp PATH=/usr/sbin:/usr/bin:/sbin:/bin
cd /tmp

# On /dev/vdb. The numbers appear at the end, in a line for each job.
block() {
	{
		cat <<-END
			[global]
			filename=/dev/vdb
			direct=1
			thread
			ioengine=libaio
			time_based
			runtime=$1
			ramp_time=1
			randrepeat=1
			norandommap
		END
		job() { printf '[%s]\nstonewall\nrw=%s\nbs=%s\niodepth=%s\n' "$@"; }
		job randread-4k-1 randread 4k 1
		job randread-4k-32 randread 4k 32
		job randwrite-4k-1 randwrite 4k 1
		job randwrite-4k-32 randwrite 4k 32
		job read-1m read 1m 4
		job write-1m write 1m 4
	} >jobs
	echo ready
	fio --output-format=terse --terse-version=3 jobs 2>&1
	echo done
}

# On eth0, with the host as 10.0.0.1. First the host asks, then the guest asks as often
# as the second argument says.
net() {
	ip link set lo up
	ip address add 10.0.0.2/24 dev eth0
	ip link set eth0 up
	iperf3 --server --daemon
	perl -MIO::Socket::INET -MSocket=TCP_NODELAY,IPPROTO_TCP -e '
		my $server = IO::Socket::INET->new(LocalPort => 7, Listen => 1) or die "listen: $!";
		$| = 1;
		print "ready\n";
		my $peer = $server->accept or die "accept: $!";
		setsockopt($peer, IPPROTO_TCP, TCP_NODELAY, 1);
		my $byte;
		while (sysread($peer, $byte, 1)) { syswrite($peer, $byte, 1); }
		my $host = IO::Socket::INET->new(PeerAddr => "10.0.0.1", PeerPort => 7)
			or die "connect: $!";
		setsockopt($host, IPPROTO_TCP, TCP_NODELAY, 1);
		for (1 .. $ARGV[0]) { syswrite($host, "x", 1); sysread($host, $byte, 1) or last; }
		close($host);
	' "$1" 2>&1
	echo done
}

"$@" || echo "failed: $*"
# The host ends the machine.
sleep 1000000
