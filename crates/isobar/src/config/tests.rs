use super::*;

const FILE: &str = "isobar.toml";

fn load(text: &str, environment: &[(&str, &str)], flags: &[Flag]) -> Result<Config, ConfigErrors> {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::load(Some((Path::new(FILE), text)), environment, flags)
}

/// The messages of what is wrong.
fn wrong(text: &str, environment: &[(&str, &str)], flags: &[Flag]) -> Vec<String> {
    match load(text, environment, flags) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn every_default_is_a_value_of_its_key_and_written_as_values_are() {
    for key in KEYS {
        let value = key
            .kind
            .of_text(key.default.trim_matches('"'))
            .unwrap_or_else(|why| panic!("{}: {why}", key.name));
        let plain = value.to_string();
        let unit_of_kafka = matches!(key.kind, Kind::Bytes(..)) && !key.default.starts_with('"');
        assert!(plain == key.default || unit_of_kafka, "{}: {plain} is written {}", key.name, key.default);
        assert!(key.doc.ends_with('.') && !key.doc.contains('\n'), "{}", key.name);
    }
}

#[test]
fn names_variables_and_flags_are_distinct() {
    let mut names: Vec<_> = KEYS.iter().map(|key| key.name.to_owned()).collect();
    names.extend(KEYS.iter().map(Key::env));
    names.extend(KEYS.iter().filter_map(|key| key.flag).map(str::to_owned));
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
}

/// The table's defaults are the node's own, which tests and the simulation use.
#[test]
fn defaults_are_those_of_the_node() {
    let (ours, node) = (Config::defaults().node_options(), NodeOptions::new("./isobar-data"));
    assert_eq!(format!("{:?}", ours.broker), format!("{:?}", node.broker));
    assert_eq!(format!("{:?}", ours.deleter), format!("{:?}", node.deleter));
    assert_eq!(format!("{:?}", ours.jobs), format!("{:?}", node.jobs));
    assert_eq!(
        (&ours.data, ours.upload_interval, ours.upload_deadline),
        (&node.data, node.upload_interval, node.upload_deadline)
    );
    assert_eq!(
        (ours.upload_trigger_bytes, ours.segment_bytes, ours.wal_max_disk_bytes, ours.tail_bytes),
        (node.upload_trigger_bytes, node.segment_bytes, node.wal_max_disk_bytes, node.tail_bytes)
    );
    assert_eq!(
        (ours.cache_bytes, ours.disk_cache_bytes, ours.snapshot_after_bytes),
        (node.cache_bytes, node.disk_cache_bytes, node.snapshot_after_bytes)
    );
    assert!(matches!(ours.store, crate::node::Store::Inside));
    // `isobar dev` has an admin port, a node in a test has none.
    assert_eq!((ours.admin.as_deref(), node.admin), (Some("127.0.0.1:9644"), None));
}

#[test]
fn the_example_is_the_file_in_deploy_and_says_what_holds_anyway() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/dev.toml");
    #[expect(clippy::disallowed_methods, reason = "reads the repository")]
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(written, example(), "write it anew: isobar config example > deploy/dev.toml");
    // With every comment taken away from the keys, too.
    let set: String = example()
        .lines()
        .map(|line| {
            match line.strip_prefix("# ").filter(|rest| rest.contains(" = ") && !rest.ends_with('.')) {
                Some(key) => format!("{key}\n"),
                None => format!("{line}\n"),
            }
        })
        .collect();
    let config = load(&set, &[], &[]).unwrap_or_else(|errors| panic!("{errors}"));
    for key in KEYS {
        let (value, source) = config.get(key.name).expect("every key");
        assert!(matches!(source, Source::File(..)), "{} is not in the example", key.name);
        assert_eq!(*value, key.default_value(), "{}", key.name);
    }
}

#[test]
fn flag_before_environment_before_file_before_default() {
    let file = "[upload]\ninterval = \"1s\"\ntrigger = \"1MiB\"\n\n[wal]\nmemory = 65536\n";
    let environment = [("ISOBAR_UPLOAD_INTERVAL", "2s"), ("ISOBAR_UPLOAD_TRIGGER", "2MiB"), ("OTHER", "x")];
    let flags = [("--upload-interval-ms", "upload.interval", "3ms".to_owned())];
    let config = load(file, &environment, &flags).expect("good");
    let options = config.node_options();
    assert_eq!(options.upload_interval, std::time::Duration::from_millis(3));
    assert_eq!((options.upload_trigger_bytes, options.tail_bytes), (2 << 20, 65536));
    assert_eq!(options.cache_bytes, 64 << 20);
    let source = |name| config.get(name).expect("a key").1.to_string();
    assert_eq!(source("upload.interval"), "--upload-interval-ms");
    assert_eq!(source("upload.trigger"), "ISOBAR_UPLOAD_TRIGGER");
    assert_eq!(source("wal.memory"), "isobar.toml:6");
    assert_eq!(source("cache.memory"), "default");
}

#[test]
fn units() {
    let bytes = |text: &str| {
        load("", &[("ISOBAR_WAL_MAX_DISK", text)], &[]).map(|c| c.node_options().wal_max_disk_bytes).ok()
    };
    for (text, n) in [
        ("64MiB", 64 << 20),
        ("1.5 GiB", 3 << 29),
        ("100_000_000", 100_000_000),
        ("2GB", 2_000_000_000),
        ("1TiB", 1 << 40),
    ] {
        assert_eq!(bytes(text), Some(n), "{text}");
    }
    for text in
        ["", "64 mib", "64Mib", "-1", "1MiB", "MiB", "99999999999999999999", "1.0000001GiB", "1 2 MiB"]
    {
        assert_eq!(bytes(text), None, "{text}");
    }
    let span = |text: &str| {
        load("", &[("ISOBAR_UPLOAD_INTERVAL", text)], &[])
            .map(|c| c.node_options().upload_interval.as_micros())
            .ok()
    };
    for (text, us) in [
        ("3s", 3_000_000),
        ("1500us", 1500),
        ("0.5 m", 30_000_000),
        ("2h", 7_200_000_000),
        ("1d", 86_400_000_000),
    ] {
        assert_eq!(span(text), Some(us), "{text}");
    }
    for text in ["3", "0s", "3 sec", "s", "1e3s", "999999d"] {
        assert_eq!(span(text), None, "{text}");
    }
}

#[test]
fn kafkas_names_dotted_or_quoted_with_its_units() {
    let file = "[kafka]\nnum.partitions = 3\n\"connections.max.idle.ms\" = 5000\nsocket.request.max.bytes = \"1MiB\"\n\
                group.min.session.timeout.ms = \"10s\"\nauto.create.topics.enable = false\n";
    let broker =
        load(file, &[("ISOBAR_KAFKA_GROUP_MAX_SIZE", "7")], &[]).expect("good").node_options().broker;
    assert_eq!((broker.num_partitions, broker.connections_max_idle_ms), (3, 5000));
    assert_eq!((broker.socket_request_max_bytes, broker.group_min_session_timeout_ms), (1 << 20, 10_000));
    assert_eq!((broker.auto_create_topics_enable, broker.group_max_size), (false, 7));
}

#[test]
fn an_error_names_key_line_and_what_was_expected_and_all_are_told() {
    let file = "[wal]\nmax_disk = \"lots\"\nmaxdisk = 1\n\n[upload]\ninterval = 3\n[wall]\nx = 1\n[kafka]\nnode.id = 1\n\
                log.retention.ms = 5\nnum.partitions = 0\n";
    let environment = [("ISOBAR_CACHE_MEMROY", "1"), ("ISOBAR_NODE_ID", "many"), ("ISOBAR_BIN", "x")];
    let flags = [("--admin", "listeners.admin", "here".to_owned())];
    let told = wrong(file, &environment, &flags);
    let expected = [
        "isobar.toml:2: wal.max_disk: \"lots\" does not fit; expected a number of bytes at least 64MiB, such as \"4GiB\" or \"64MiB\"",
        "isobar.toml:3: wal.maxdisk: unknown key; did you mean wal.max_disk?",
        "isobar.toml:6: upload.interval: 3 does not fit; expected a time span from 1ms to 365d, such as \"3s\" (units: us, ms, s, m, h, d)",
        "isobar.toml:8: wall.x: no section [wall]; there are [node], [listeners], [cluster], [store], [wal], [metadata], [cache], [upload], [compaction], [index], [object], [archive], [delete], [log], [kafka]; did you mean [wal]?",
        "isobar.toml:10: kafka.node.id: not set here; set node.id instead",
        "isobar.toml:11: kafka.log.retention.ms: not set here; log.retention.ms is the whole cluster's: set it with `kafka-configs --alter --entity-type brokers --entity-default`",
        "isobar.toml:12: kafka.num.partitions: 0 is out of bounds; expected a whole number from 1 to 2147483647",
        "ISOBAR_CACHE_MEMROY: no key has this variable; did you mean ISOBAR_CACHE_MEMORY?",
        "ISOBAR_NODE_ID: node.id: \"many\" does not fit; expected a whole number from 0 to 2147483647",
        "--admin: listeners.admin: \"here\" does not fit; expected an address, host:port, or \"off\"",
    ];
    assert_eq!(told, expected);
}

#[test]
fn a_key_in_another_section_is_found() {
    assert_eq!(
        wrong("[cache]\ninterval = \"1s\"\n", &[], &[]),
        ["isobar.toml:2: cache.interval: unknown key; did you mean upload.interval?"]
    );
    assert_eq!(wrong("data = \"x\"\n", &[], &[]).len(), 1);
}

#[test]
fn what_is_no_toml_is_told_with_its_line() {
    let told = wrong("[wal]\nmemory = \"64MiB\"\nmax_disk 5\n", &[], &[]);
    assert!(told.len() == 1 && told[0].starts_with("isobar.toml:3: not TOML: "), "{told:?}");
    let told = wrong("[wal]\nmemory = 65536\nmemory = 65537\n", &[], &[]);
    assert!(told.len() == 1 && told[0].starts_with("isobar.toml:3: not TOML: "), "{told:?}");
}

#[test]
fn the_stores_options_are_passed_on_and_secrets_masked() {
    let file = "[store]\nurl = \"s3://bucket\"\noptions.region = \"eu\"\noptions.path_style = true\noptions.secret_access_key = \"abc\"\n";
    let config = load(file, &[("ISOBAR_STORE_OPTIONS_REGION", "us")], &[]).expect("good");
    let options: Vec<_> = config.store_options().collect();
    assert_eq!(options, [("path_style", "true"), ("region", "us"), ("secret_access_key", "abc")]);
    let shown = config.show();
    assert!(shown.iter().all(|key| !key.value.contains("abc")));
    let masked = shown.iter().find(|key| key.name == "store.options.secret_access_key").expect("shown");
    assert_eq!((&*masked.value, masked.source.to_string()), ("\"********\"", "isobar.toml:5".to_owned()));
    assert_eq!(wrong("[store]\nurl = \"s3://b\"\noptions.list = [1]\n", &[], &[]).len(), 1);
    assert_eq!(
        wrong("[store]\noptions.region = \"eu\"\n", &[], &[]),
        [
            "isobar.toml:2: store.options.region: the store within node.data has no options; expected store.url to be set too"
        ]
    );
}

#[test]
fn the_stores_options_end_up_in_its_url() {
    let file = "[store]\nurl = \"s3://b/p?sas_token=x&region=eu\"\noptions.endpoint = \"http://h:1/?a b\"\noptions.n = 3\n";
    let config = load(file, &[], &[]).expect("good");
    let options = config.node_options();
    let crate::node::Store::Url(url) = &options.store else { panic!("no URL") };
    assert_eq!(url, "s3://b/p?sas_token=x&region=eu&endpoint=http%3A%2F%2Fh%3A1%2F%3Fa%20b&n=3");
    let shown = config.show().into_iter().find(|key| key.name == "store.url").expect("shown");
    assert_eq!(shown.value, "\"s3://b/p?sas_token=********&region=eu\"");
}

#[test]
fn a_clusters_node_needs_all_of_its_section() {
    let voters = "[node]\nid = 2\n[cluster]\nvoters = \"1@a:1,2@b:1\"\n";
    let told = |text: &str| match Config::load(Some((Path::new("n.toml"), text)), [], &[]) {
        Ok(config) => Ok(config.node_options().cluster),
        Err(errors) => Err(errors.to_string()),
    };
    let lacking = told(voters).unwrap_err();
    for name in ["cluster.id", "cluster.secret_file", "store.url"] {
        assert!(lacking.contains(&format!("{name} to be set too")), "{lacking}");
    }
    let rest = "id = \"c\"\nsecret_file = \"s\"\n[store]\nurl = \"s3://b\"\n";
    let cluster = told(&format!("{voters}{rest}")).unwrap();
    assert!(cluster.is_member());
    assert_eq!(cluster.voters, [(1, "a:1".to_owned()), (2, "b:1".to_owned())]);
    let stranger = told(&format!("{voters}{rest}").replace("id = 2", "id = 7")).unwrap_err();
    assert!(stranger.contains("node.id 7 is not among them"), "{stranger}");
    let joining = format!("[listeners]\ncluster = \"c:1\"\n{voters}{rest}")
        .replace("id = 2", "id = 7\nroles = \"wal\"");
    assert_eq!(told(&joining).unwrap().listen.as_deref(), Some("c:1"));
    let mute = format!("{voters}{rest}").replace("id = 2", "id = 2\nroles = \"wal, broker\"");
    assert!(told(&mute).unwrap_err().contains("metadata among node.roles"));
    assert!(told("[node]\nroles = \"wal\"").unwrap_err().contains("a node that is alone has all roles"));
    assert!(told("[node]\nroles = \"wal,disk\"").unwrap_err().contains("one or more of"));
    for wrong in ["1@a", "a:1", "1@a:1,1@b:1", "1@a:1,2@a:1", "x@a:1"] {
        assert!(nodes(wrong).is_none(), "{wrong}");
    }
    assert!(!told("").unwrap().is_member());
}
