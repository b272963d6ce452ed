/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/* The few structures of tasks and files that the sensor reads, relocated by CO-RE: fields by name. */
#ifndef AEGIS_TASK_TYPES_H
#define AEGIS_TASK_TYPES_H

#include <linux/types.h>

#define AEGIS_CORE __attribute__((preserve_access_index))

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	__u32 val;
} kuid_t;

struct cred {
	kuid_t uid;
} AEGIS_CORE;

struct signal_struct {
	atomic_t live;
	unsigned int flags;
	int group_exit_code;
} AEGIS_CORE;

struct kernfs_node {
	struct kernfs_node *parent;
	const char *name;
} AEGIS_CORE;

/* since 6.15 */
struct kernfs_node___rcu {
	struct kernfs_node *__parent;
} AEGIS_CORE;

struct cgroup {
	struct kernfs_node *kn;
} AEGIS_CORE;

struct css_set {
	struct cgroup *dfl_cgrp;
} AEGIS_CORE;

struct qstr {
	const unsigned char *name;
} AEGIS_CORE;

struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
} AEGIS_CORE;

struct vfsmount {
	struct dentry *mnt_root;
} AEGIS_CORE;

struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
} AEGIS_CORE;

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
} AEGIS_CORE;

struct file {
	struct path f_path;
} AEGIS_CORE;

struct mm_struct {
	unsigned long arg_start;
	unsigned long arg_end;
	struct file *exe_file;
} AEGIS_CORE;

struct task_struct {
	int tgid;
	int exit_code;
	__u64 start_boottime;
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	struct signal_struct *signal;
	struct mm_struct *mm;
	const struct cred *real_cred;
	struct css_set *cgroups;
	char comm[16];
} AEGIS_CORE;

#endif
