//! Chinese: which characters of a stretch name something, and which say negation, subject and duration.
//!
//! Decides by closed lists of words, the longest first. Invariant: what stands behind a negation is in negated parts
//! alone. It does not segment words beyond these lists.

use super::{Part, Stretch, Subject};

/// Words that negate what follows.
#[rustfmt::skip]
const CUES: &[&str] = &[
    "没有", "没", "無", "无", "不是", "不要", "不想要", "不想", "不用", "不需要", "不含", "不带", "不加", "不吃",
    "不喝", "不再", "不会", "不", "别", "未", "非", "除了", "拒绝", "避免", "讨厌", "并不", "并没有", "从不",
    "从来不", "毫无", "不买", "不放", "不爱吃", "不爱", "不喜欢",
];

/// Words with a sign of negation that negate nothing: complaints, questions, and parts of other words.
#[rustfmt::skip]
const KEPT: &[&str] = &[
    "不舒服", "不好", "睡不着", "睡不好", "吃不下", "不消化", "消化不良", "不良", "不适", "不调", "不振", "不足",
    "不通", "没胃口", "没有胃口", "没力气", "没有力气", "没精神", "没有精神", "没劲", "无力", "不孕", "不安",
    "不开心", "不规律", "睡不", "止不住", "不透气", "不退", "高烧不退", "非处方", "无线", "无纺布", "不锈钢",
    "不粘锅", "别墅", "特别", "非常", "未来", "没睡好", "失眠",
];

/// Words with a sign of negation that say nothing of what is named.
#[rustfmt::skip]
const IDLE: &[&str] = &[
    "有没有", "是不是", "好不好", "能不能", "要不要", "会不会", "可不可以", "行不行", "不止", "不停", "不断",
    "不见好", "不愈", "好不了", "治不好", "不知道", "不仅", "不但", "不只", "不光", "没完没了", "不管用", "没用",
    "不行", "不错", "无论", "不管", "怎么都不好", "一直不好", "老是不好", "总不好", "还不好", "没见好", "没好转",
    "不得不", "不清楚", "没办法", "无法", "不了",
];

/// Words that end a negation.
#[rustfmt::skip]
const ENDS: &[&str] = &[
    "但是", "但", "只是", "只有", "只", "就是", "而是", "反而", "可是", "不过", "想要", "想买", "需要", "想",
    "我要", "求", "有点", "有些", "却", "还有", "有",
];

/// Words that negate what stands before them.
#[rustfmt::skip]
const GONE: &[&str] = &[
    "已经好了", "都好了", "好了", "没有了", "没了", "消失了", "已经退了", "退了", "不见了", "痊愈了", "痊愈",
];

/// What products are often sold without: "无糖饼干" are biscuits.
#[rustfmt::skip]
const WITHOUT: &[&str] = &[
    "蔗糖", "添加糖", "糖", "盐", "酒精", "香精", "香料", "硅油", "麸质", "乳糖", "添加剂", "添加", "咖啡因",
    "防腐剂", "色素", "荧光剂", "硫酸盐", "脂", "油",
];

/// What hurts or itches of a part of the body: "头不疼" denies "头疼".
#[rustfmt::skip]
const FEELINGS: &[&str] = &[
    "疼", "痛", "痒", "晕", "肿", "红", "酸", "胀", "麻", "干",
];

/// Words for other persons, and for animals that are shopped for.
#[rustfmt::skip]
const PERSONS: &[&str] = &[
    "妈妈", "母亲", "老妈", "爸爸", "父亲", "老爸", "儿子", "女儿", "孩子", "小孩", "宝宝", "宝贝", "老婆", "妻子",
    "太太", "老公", "丈夫", "爱人", "男朋友", "女朋友", "对象", "奶奶", "爷爷", "外婆", "外公", "姥姥", "姥爷",
    "哥哥", "弟弟", "姐姐", "妹妹", "公公", "婆婆", "岳父", "岳母", "父母", "爸妈", "朋友", "同事", "老人家",
    "老人", "长辈", "家人", "侄子", "侄女", "阿姨", "叔叔", "舅舅", "姑姑", "室友", "狗狗", "小狗", "狗", "猫咪",
    "小猫", "猫", "妈", "爸", "娃", "他", "她", "别人", "孙子", "孙女", "闺女", "同学",
];

/// Words that may stand before a person.
#[rustfmt::skip]
const OWNERS: &[&str] = &[
    "我们家", "我们", "我家", "我的", "咱家", "咱", "家里的", "家里", "家中", "我",
];

/// Words that name nothing, at the ends of a part.
#[rustfmt::skip]
const CARRIERS: &[&str] = &[
    "有没有", "我", "想买", "想要", "我要", "我想", "想", "要", "买", "求推荐", "推荐", "求", "什么药", "吃什么",
    "怎么办", "怎么治", "怎么缓解", "怎么", "治疗", "治", "缓解", "的药", "好用的", "一点", "一些", "有点", "有些",
    "点", "最近", "一直", "总是", "老是", "老", "很", "非常", "特别", "了", "呢", "吗", "吧", "的", "得", "着",
    "啊", "请问", "请", "帮忙", "给", "用", "吃", "喝", "有", "和", "跟", "与", "或者", "或", "还", "也", "但是",
    "但", "只是", "只有", "只", "就是", "就", "而是", "而", "可是", "不过", "需要", "找", "看看", "什么", "哪种",
    "哪个", "好", "比较", "那种", "这种", "一种", "都", "是", "在", "已经", "今天", "现在", "因为", "所以", "以外",
    "之外", "其他", "其它", "都可以", "可以", "任何", "一个", "症状", "出现", "感觉", "觉得", "对", "还有", "另外",
    "然后", "、", "来", "款", "适合", "想找", "买点", "却", "反而", "想", "家里", "大概", "差不多", "快", "持续",
    "使", "东西",
];

/// Reads a stretch.
pub(super) fn read(stretch: &str) -> Stretch {
    let all: String = stretch.chars().filter(|c| !c.is_whitespace()).collect();
    let mut rest = without_sequences(&all, IDLE);
    let days = duration(&mut rest);
    let (subject, subject_of_all) = subject(&mut rest);
    let is_or = rest.contains('或');
    let (parts, is_open) = parts(&rest, &all);
    Stretch {
        parts,
        subject,
        subject_of_all,
        days,
        is_open,
        is_or,
    }
}

fn without_sequences(text: &str, sequences: &[&str]) -> String {
    let mut rest = text;
    let mut kept = String::new();
    while let Some(first) = rest.chars().next() {
        // A word that is kept may begin with one that is idle.
        if let Some(word) = longest(rest, KEPT) {
            kept.push_str(word);
            rest = &rest[word.len()..];
        } else if let Some(word) = longest(rest, sequences) {
            rest = &rest[word.len()..];
        } else {
            kept.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    kept
}

/// The longest word with which a text begins.
fn longest<'a>(text: &str, words: &[&'a str]) -> Option<&'a str> {
    let found = words.iter().copied().filter(|word| text.starts_with(word));
    found.max_by_key(|word| word.len())
}

/// The longest word with which a text ends.
fn last<'a>(text: &str, words: &[&'a str]) -> Option<&'a str> {
    let found = words.iter().copied().filter(|word| text.ends_with(word));
    found.max_by_key(|word| word.len())
}

/// Takes the characters of a duration out; its days.
fn duration(text: &mut String) -> Option<u32> {
    for (at, _) in text.char_indices() {
        let rest = &text[at..];
        let fixed = [
            ("从昨天开始", 1),
            ("昨天开始", 1),
            ("昨天起", 1),
            ("从上周开始", 7),
            ("上周开始", 7),
            ("上周起", 7),
        ];
        let begins = |(word, _): &&(&str, u32)| rest.starts_with(word);
        if let Some((word, days)) = fixed.iter().find(begins) {
            text.replace_range(at..at + word.len(), "");
            return Some(*days);
        }
        let Some((days, length)) = measure(rest) else {
            continue;
        };
        let after = &rest[length..];
        // "7天用量" is a pack, "一日三次" a dose.
        let is_other = [
            "用量",
            "装",
            "量",
            "份",
            "次",
            "三次",
            "两次",
            "无理由",
            "级",
            "前",
        ];
        if longest(after, &is_other).is_some() {
            continue;
        }
        let trails = ["左右", "以来", "以上", "多了", "来了", "了", "多", "来"];
        let to = at + length + longest(after, &trails).map_or(0, str::len);
        let leads = [
            "已经",
            "大概",
            "大约",
            "差不多",
            "持续",
            "有",
            "快",
            "近",
            "这",
            "连续",
        ];
        let mut from = at;
        while let Some(word) = last(&text[..from], &leads) {
            from -= word.len();
        }
        text.replace_range(from..to, "");
        return Some(days);
    }
    None
}

/// The days of a duration with which a text begins, and its bytes: "三个星期", "好几天", "半年".
fn measure(text: &str) -> Option<(u32, usize)> {
    let (number, length) = number_of(text)?;
    let rest = &text[length..];
    let many = longest(rest, &["多个", "多", "个"]).map_or(0, str::len);
    let unit = &rest[many..];
    let counted = rest[..many].ends_with('个');
    let units: [(&str, u32, bool); 9] = [
        ("星期", 7, false),
        ("礼拜", 7, false),
        ("周", 7, false),
        ("晚上", 1, false),
        ("晚", 1, false),
        ("天", 1, false),
        ("日", 1, false),
        ("年", 365, false),
        // "五月" is a month of the year.
        ("月", 30, true),
    ];
    let (word, days, _) = units.iter().find(|(word, _, needs_counter)| {
        unit.starts_with(word) && (counted || !needs_counter || number == 0)
    })?;
    let days = if number == 0 {
        days / 2
    } else {
        number.saturating_mul(*days)
    };
    Some((days.max(1), length + many + word.len()))
}

/// The number with which a text begins, and its bytes; 0 is a half.
fn number_of(text: &str) -> Option<(u32, usize)> {
    if let Some(word) = longest(text, &["好几", "好多", "几", "多"]) {
        return Some((3, word.len()));
    }
    if text.starts_with('半') {
        return Some((0, '半'.len_utf8()));
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    if digits > 0 {
        let number: u32 = text[..digits].parse().ok()?;
        return (1..=366).contains(&number).then_some((number, digits));
    }
    let names = ['一', '二', '三', '四', '五', '六', '七', '八', '九'];
    let digit = |c: char| match c {
        '两' => Some(2),
        c => names
            .iter()
            .position(|name| *name == c)
            .map(|at| at as u32 + 1),
    };
    let mut chars = text.chars();
    let first = chars.next()?;
    let (mut number, mut length) = match (digit(first), first) {
        (Some(n), _) => (n, first.len_utf8()),
        (None, '十') => (10, first.len_utf8()),
        _ => return None,
    };
    let mut next = chars.next();
    if first != '十' && next == Some('十') {
        number *= 10;
        length += '十'.len_utf8();
        next = chars.next();
    }
    if number >= 10
        && let Some(n) = next.and_then(digit)
    {
        number += n;
        length += '一'.len_utf8();
    }
    Some((number, length))
}

/// Takes the characters of a subject out: whose it is, and whether it holds for what stands before, too.
fn subject(text: &mut String) -> (Subject, bool) {
    for (at, _) in text.char_indices() {
        let rest = &text[at..];
        if let Some(word) = longest(rest, &["给", "为", "帮", "替"]) {
            if let Some(length) = person(&rest[word.len()..]) {
                let to = at + word.len() + length;
                text.replace_range(at..to, "");
                return (Subject::Other, true);
            }
            if rest[word.len()..].starts_with("自己") {
                text.replace_range(at..at + word.len() + "自己".len(), "");
                return (Subject::User, true);
            }
        }
        let is_start = at == 0 || text[..at].ends_with(['、', '但', '过', '是']);
        let owned = longest(rest, OWNERS).is_some();
        if (owned || is_start)
            && let Some(length) = person(rest)
        {
            text.replace_range(at..at + length, "");
            return (Subject::Other, false);
        }
    }
    for after in ["老人", "孩子", "小孩", "宝宝", "长辈"] {
        for verb in ["用的", "吃的", "喝的", "使用的"] {
            let phrase = format!("{after}{verb}");
            if text.contains(&phrase) {
                *text = text.replace(&phrase, "");
                return (Subject::Other, true);
            }
        }
    }
    match text.contains('我') || text.contains("自己") || text.contains("本人") {
        true => (Subject::User, false),
        false => (Subject::Unsaid, false),
    }
}

/// The bytes of the words for a person with which a text begins: "我妈妈", "家里老人的".
fn person(text: &str) -> Option<usize> {
    let owner = longest(text, OWNERS).map_or(0, str::len);
    let age = number_of(&text[owner..]);
    let age = age.filter(|(_, length)| text[owner + length..].starts_with('岁'));
    let age = age.map_or(0, |(_, length)| length + '岁'.len_utf8());
    let age = age + usize::from(age > 0 && text[owner + age..].starts_with('的')) * '的'.len_utf8();
    let person = longest(&text[owner + age..], PERSONS)?;
    let mut end = owner + age + person.len();
    if text[end..].starts_with('的') {
        end += '的'.len_utf8();
    }
    Some(end)
}

/// The parts of a stretch, and whether it ends inside of a negation.
fn parts(text: &str, all: &str) -> (Vec<Part>, bool) {
    let mut reading = Reading {
        parts: Vec::new(),
        said: String::new(),
        negated: false,
        cue: "",
    };
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        rest = reading.step(rest, first);
    }
    let Reading { negated, .. } = reading;
    reading.push(negated);
    let mut parts = reading.parts;
    let has_negated = parts.iter().any(|part| part.negated);
    for part in &mut parts {
        if !has_negated && part.core != all {
            part.whole = all.to_owned();
        }
    }
    (parts, negated)
}

struct Reading {
    parts: Vec<Part>,
    said: String,
    negated: bool,
    /// The word that began the negation.
    cue: &'static str,
}

impl Reading {
    /// Reads what a text begins with; the rest.
    fn step<'t>(&mut self, rest: &'t str, first: char) -> &'t str {
        if let Some(word) = longest(rest, KEPT) {
            self.said.push_str(word);
            return &rest[word.len()..];
        }
        if let Some(word) = longest(rest, GONE).filter(|_| !self.said.is_empty()) {
            self.push(true);
            self.negated = false;
            return &rest[word.len()..];
        }
        if let Some(after) = self.allergy(rest) {
            return after;
        }
        if let Some(cue) = longest(rest, CUES) {
            return self.begin(&rest[cue.len()..], cue);
        }
        if self.negated {
            if self.cue == "除了"
                && let Some(word) = longest(rest, &["以外的", "以外", "之外的", "之外", "外"])
            {
                self.push(true);
                self.negated = false;
                return &rest[word.len()..];
            }
            let sold_without = ["没有", "无", "不含", "不带", "不加", "不放"].contains(&self.cue);
            if sold_without
                && first == '的'
                && !self.said.is_empty()
                && rest.len() > first.len_utf8()
            {
                self.push(true);
                self.negated = false;
                return &rest[first.len_utf8()..];
            }
            if !self.said.is_empty() && longest(rest, ENDS).is_some() {
                self.push(true);
                self.negated = false;
            }
        }
        self.said.push(first);
        &rest[first.len_utf8()..]
    }

    /// "对花生过敏": an allergy, and what is not wanted.
    fn allergy<'t>(&mut self, rest: &'t str) -> Option<&'t str> {
        let inside = rest.strip_prefix('对')?;
        let (what, after) = inside.split_once("过敏")?;
        let is_short = what.chars().count() <= 8 && longest(what, CUES).is_none();
        if !is_short {
            return None;
        }
        self.push(self.negated);
        self.said = what.to_owned();
        self.push(true);
        self.said = "过敏".to_owned();
        self.push(self.negated);
        Some(after)
    }

    /// Begins a negation; the rest behind what a product is sold without.
    fn begin<'t>(&mut self, rest: &'t str, cue: &'static str) -> &'t str {
        let denies = matches!(
            cue,
            "不" | "没" | "没有" | "不再" | "不会" | "并不" | "并没有"
        );
        let feels = denies && longest(rest, FEELINGS).is_some();
        let is_short = (1..=3).contains(&self.said.chars().count());
        if !(feels && is_short && !self.negated) {
            self.push(self.negated);
        }
        (self.negated, self.cue) = (true, cue);
        let sold_without = matches!(cue, "无" | "無" | "不含" | "不加" | "不带");
        let Some(what) = longest(rest, WITHOUT).filter(|_| sold_without) else {
            return rest;
        };
        let after = &rest[what.len()..];
        let after = after.strip_prefix('的').unwrap_or(after);
        let listed = ["和", "或", "、", "也"];
        if after.is_empty() || longest(after, &listed).is_some() {
            return rest;
        }
        self.said = what.to_owned();
        self.push(true);
        self.negated = false;
        after
    }

    /// Ends a part, unless it names nothing.
    fn push(&mut self, negated: bool) {
        let said = std::mem::take(&mut self.said);
        let mut core = said.as_str();
        loop {
            let before = core;
            core = core.trim_matches(|c: char| !c.is_alphanumeric());
            if let Some(word) = longest(core, CARRIERS).filter(|_| longest(core, KEPT).is_none()) {
                core = &core[word.len()..];
            }
            if let Some(word) = last(core, CARRIERS).filter(|_| last(core, KEPT).is_none()) {
                core = &core[..core.len() - word.len()];
            }
            if core == before {
                break;
            }
        }
        if core.chars().any(char::is_alphanumeric) {
            self.parts.push(Part {
                core: core.to_owned(),
                whole: String::new(),
                negated,
            });
        }
    }
}
