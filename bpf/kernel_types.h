/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* The few kernel structures that the programs read, relocated by CO-RE: fields by name, never by offset. */
#ifndef AEGIS_KERNEL_TYPES_H
#define AEGIS_KERNEL_TYPES_H

#include <linux/types.h>

#define AEGIS_CORE __attribute__((preserve_access_index))

typedef struct {
	__u32 val;
} kuid_t;

struct kernfs_iattrs {
	kuid_t ia_uid;
} AEGIS_CORE;

struct kernfs_node {
	__u64 id;
	unsigned short mode;
	struct kernfs_iattrs *iattr;	/* 0: never changed, so root's */
} AEGIS_CORE;

struct user_namespace {
	int level;
} AEGIS_CORE;

struct cred {
	kuid_t fsuid;
	struct user_namespace *user_ns;
} AEGIS_CORE;

struct cgroup_root {
	int hierarchy_id;
} AEGIS_CORE;

struct cgroup {
	int level;
	struct kernfs_node *kn;
	struct cgroup_root *root;
	struct cgroup *ancestors[];
} AEGIS_CORE;

struct sock_cgroup_data {
	struct cgroup *cgroup;
} AEGIS_CORE;

struct net {
	__u64 net_cookie;
	struct user_namespace *user_ns;
} AEGIS_CORE;

typedef struct {
	struct net *net;
} possible_net_t;

struct in6_kernel_addr {
	__u32 words[4];
};

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_kernel_addr skc_v6_daddr;
	struct in6_kernel_addr skc_v6_rcv_saddr;
} AEGIS_CORE;

struct sock {
	struct sock_common __sk_common;
	struct sock_cgroup_data sk_cgrp_data;
	__u8 sk_userlocks : 4;
	__u16 sk_protocol;
	__u16 sk_type;
} AEGIS_CORE;

struct inet_sock {
	unsigned long inet_flags;
} AEGIS_CORE;

/* before Linux 6.6 */
struct inet_sock___bits {
	__u8 freebind : 1;
	__u8 transparent : 1;
} AEGIS_CORE;

struct sk_buff {
	struct sock *sk;
	unsigned long _nfct;
} AEGIS_CORE;

union nf_inet_addr {
	__u32 all[4];
};

union nf_conntrack_man_proto {
	__u16 all;
};

struct nf_conntrack_man {
	union nf_inet_addr u3;
	union nf_conntrack_man_proto u;
	__u16 l3num;
};

struct nf_conntrack_tuple {
	struct nf_conntrack_man src;
	struct {
		union nf_inet_addr u3;
		union nf_conntrack_man_proto u;
		__u8 protonum;
		__u8 dir;
	} dst;
};

struct nf_conntrack_tuple_hash {
	struct nf_conntrack_tuple tuple;
} AEGIS_CORE;

struct nf_conn {
	struct nf_conntrack_tuple_hash tuplehash[2];
	unsigned long status;
} AEGIS_CORE;

struct task_struct {
	int tgid;
	const struct cred *cred;
	struct task_struct *group_leader;
	__u64 start_boottime;
} AEGIS_CORE;

struct tcp_sock {
	__u32 rcv_nxt;
	__u64 bytes_acked;
	__u64 bytes_sent;
	__u64 bytes_retrans;
	__u32 snd_nxt;
	__u32 snd_una;
	__u32 write_seq;
} AEGIS_CORE;

struct udp_sock {
	int pending;
	int (*encap_rcv)(struct sock *sk, struct sk_buff *skb);	/* 0: datagrams are for programs */
} AEGIS_CORE;

struct seq_file {
	void *private;
} AEGIS_CORE;

struct bpf_iter_meta {
	struct seq_file *seq;
	__u64 session_id;
	__u64 seq_num;
} AEGIS_CORE;

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
	unsigned int uid;
} AEGIS_CORE;

struct bpf_iter__udp {
	struct bpf_iter_meta *meta;
	struct udp_sock *udp_sk;
	unsigned int uid;
	int bucket;
} AEGIS_CORE;

#endif
