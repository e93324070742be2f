//! What is sent to Slack's incoming webhooks, and to those who read the same.

use serde_json::{Value, json};

use crate::store::outbox::Told;

/// Slack takes 3000 characters in a block.
const CHARS_MAX: usize = 2900;

/// Nothing that stands in a user id may become a link, or call a channel. So people see it as plain text, of which Slack makes nothing;
/// where only `text` is read (in notifications, and by others), what could become something is taken apart.
pub fn body(alert: &Told) -> Vec<u8> {
    let shown: String = alert.message.chars().take(CHARS_MAX).collect();
    let plain = json!({"type": "plain_text", "text": shown, "emoji": false});
    let body: Value = json!({
        "text": inert(&shown),
        "mrkdwn": false,
        "unfurl_links": false,
        "unfurl_media": false,
        "blocks": [{"type": "section", "text": plain}],
    });
    body.to_string().into_bytes()
}

/// Slack's own escapes, and a space of no width where a mention, a URL, an e-mail address or a host name would be known by.
fn inert(text: &str) -> String {
    let mut inert = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '&' => inert.push_str("&amp;"),
            '<' => inert.push_str("&lt;"),
            '>' => inert.push_str("&gt;"),
            '@' | '#' => inert.extend([c, '\u{200b}']),
            ':' if rest.peek() == Some(&'/') => inert.extend([c, '\u{200b}']),
            '.' if rest.peek().is_some_and(|next| next.is_alphabetic()) => inert.extend([c, '\u{200b}']),
            _ => inert.push(c),
        }
    }
    inert
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_becomes_a_link_or_a_mention() {
        for (text, expected) in [
            ("u_42 has used 80 % of $1.00", "u_42 has used 80 % of $1.00"),
            ("<!channel>", "&lt;!channel&gt;"),
            ("<https://evil.example|your bill>", "&lt;https:\u{200b}//evil.\u{200b}example|your bill&gt;"),
            ("@channel @here #general", "@\u{200b}channel @\u{200b}here #\u{200b}general"),
            ("&lt;!channel&gt;", "&amp;lt;!channel&amp;gt;"),
            ("a@evil.example", "a@\u{200b}evil.\u{200b}example"),
            ("It resets. Now.", "It resets. Now."),
        ] {
            assert_eq!(inert(text), expected);
        }
    }
}
