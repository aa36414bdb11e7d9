//! [`ControlError`]: what the API answers when it does not do what it was asked, and the table of its codes.

use std::error::Error;
use std::fmt;

use http::StatusCode;

type Source = Box<dyn Error + Send + Sync>;

/// Which rule refused. The number is Cloudflare's where wrangler or its users know it; from 90000 on it is cfc's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// No token, or another one.
    Unauthenticated,
    /// No such path or method.
    NoRoute,
    /// No such Worker.
    NoSuchWorker,
    /// No such version of a Worker.
    NoSuchVersion,
    /// No such binding of a Worker.
    NoSuchBinding,
    /// A Worker has another binding of that name.
    BindingInUse,
    /// No such container application, instance or rollout.
    NotFound,
    /// The request cannot be understood.
    Malformed,
    /// The upload is understood and cannot be deployed.
    InvalidUpload,
    /// It exists already.
    Exists,
    /// Asks for what cfc does not do.
    Unsupported,
    /// An image is not there, not allowed or not for this machine.
    Image,
    /// An image did not survive its trial start.
    Trial,
    /// The Worker could not be put in service.
    Activation,
    /// Another change of the same thing won.
    Conflict,
    /// The bucket could not be read or written.
    Bucket,
    /// The instance has no such command.
    CommandNotFound,
    /// The instance has the command and cannot execute it.
    NotExecutable,
}

/// Code, number, status.
const CODES: &[(Code, u32, StatusCode)] = &[
    (Code::Unauthenticated, 10000, StatusCode::UNAUTHORIZED),
    (Code::NoRoute, 7003, StatusCode::NOT_FOUND),
    (Code::NoSuchWorker, 10007, StatusCode::NOT_FOUND),
    (Code::NoSuchVersion, 100146, StatusCode::NOT_FOUND),
    (Code::NoSuchBinding, 10056, StatusCode::NOT_FOUND),
    (Code::BindingInUse, 10053, StatusCode::BAD_REQUEST),
    (Code::NotFound, 90001, StatusCode::NOT_FOUND),
    (Code::Malformed, 90002, StatusCode::BAD_REQUEST),
    (Code::InvalidUpload, 10021, StatusCode::BAD_REQUEST),
    (Code::Exists, 90003, StatusCode::CONFLICT),
    (Code::Unsupported, 90004, StatusCode::NOT_IMPLEMENTED),
    (Code::Image, 90005, StatusCode::UNPROCESSABLE_ENTITY),
    (Code::Trial, 90006, StatusCode::UNPROCESSABLE_ENTITY),
    (Code::Activation, 90007, StatusCode::UNPROCESSABLE_ENTITY),
    (Code::Conflict, 90008, StatusCode::CONFLICT),
    (Code::Bucket, 90009, StatusCode::INTERNAL_SERVER_ERROR),
    (Code::CommandNotFound, 90010, StatusCode::BAD_REQUEST),
    (Code::NotExecutable, 90011, StatusCode::BAD_REQUEST),
];

impl Code {
    fn row(self) -> &'static (Code, u32, StatusCode) {
        CODES.iter().find(|row| row.0 == self).expect("every code has a row, which a test checks")
    }

    /// The number in the answer.
    pub fn number(self) -> u32 {
        self.row().1
    }

    /// The status of the answer.
    pub fn status(self) -> StatusCode {
        self.row().2
    }

    /// The code that a number stands for.
    pub fn from_number(number: u32) -> Option<Code> {
        CODES.iter().find(|row| row.1 == number).map(|row| row.0)
    }
}

/// What was asked and why it was not done, with what to do about it.
#[derive(Debug)]
pub struct ControlError {
    /// Which rule.
    pub code: Code,
    /// What was not done.
    pub message: String,
    /// Where the cause lies, for example `containers[0].configuration.image`.
    pub location: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
    source: Option<Source>,
}

impl ControlError {
    /// An error that is its own cause.
    pub fn new(code: Code, message: impl Into<String>) -> ControlError {
        ControlError { code, message: message.into(), location: None, hint: None, source: None }
    }

    /// The same, with what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> ControlError {
        self.hint = Some(hint.into());
        self
    }

    /// The same, with where the cause lies.
    pub fn at(mut self, location: impl Into<String>) -> ControlError {
        self.location = Some(location.into());
        self
    }

    /// The same, with its cause.
    pub fn because(mut self, source: impl Into<Source>) -> ControlError {
        self.source = Some(source.into());
        self
    }

    /// The message and the causes below it, outermost first.
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for ControlError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_one_row_and_one_number() {
        use Code::*;
        let all = [
            Unauthenticated,
            NoRoute,
            NoSuchWorker,
            NoSuchVersion,
            NoSuchBinding,
            BindingInUse,
            NotFound,
            Malformed,
            InvalidUpload,
            Exists,
            Unsupported,
            Image,
            Trial,
            Activation,
            Conflict,
            Bucket,
            CommandNotFound,
            NotExecutable,
        ];
        assert_eq!(all.len(), CODES.len());
        for code in all {
            assert_eq!(Code::from_number(code.number()), Some(code));
        }
    }

    #[test]
    fn the_chain_names_every_cause() {
        let error = ControlError::new(Code::Bucket, "cannot deploy `app`").because(std::io::Error::other("disk full"));
        assert_eq!(error.chain(), "cannot deploy `app`: disk full");
    }
}
